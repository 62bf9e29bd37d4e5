"""A detector of seconds on drawn images: arguments of the tests' detectors."""

SMALL = {
    "anchor_sizes": (16, 32),
    "rpn_batch": 32,
    "proposals_train": (200, 40),
    "proposals_test": (100, 20),
    "rois": 16,
    "roi_size": 4,
}
