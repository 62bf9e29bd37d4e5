"""A scale of seconds for the study's tests; run as a script, it makes a study to be killed."""

import sys
from dataclasses import replace

from goodtransfer.study.protocol import K1M, K64
from goodtransfer.study.scales import SCALES, Scale
from goodtransfer.study.transfers import C4, City, FewShot, Inversion, Landmarks, Linear

_C4 = C4(
    batch=8,
    accumulate=2,
    iterations=2,
    milestones=(1,),
    warmup=1,
    short_sides=(64,),
    test_side=64,
    precise_bn=2,
    anchor_sizes=(16, 32),
    rpn_batch=32,
    proposals_train=(200, 50),
    proposals_test=(100, 20),
    rois=16,
    roi_size=4,
)
_CITY = City(iterations=2, batch=2, channels=8, aux_channels=4, crop=(32, 64), nominal=(32, 64))
_READOUT = Linear(epochs=2, batch_size=10, size=16)
TINY = Scale(
    "tiny",
    every={"encoder": "resnet10w8", "size": 16, "batch_size": 10, "epochs": 3, "crop": 0.5},
    queue_sizes={2**14: 16, K64: 16, K1M: 24},
    on_method={"SimCLR": {"warmup_epochs": 1}, "InstDisc": {"loss": "softmax"}},
    on_data={"imagenet100": {"batch_size": 4}},  # which has four images
    by_task={"COCODetection": _C4, "Segmentation": _CITY},
    transfers={
        "linear": _READOUT,
        "base": _READOUT,
        "voc07": _C4,
        "voc07_course": replace(_C4, eval_iters=(1, 2)),
        "voc0712": _C4,
        "coco": _C4,
        "city": _CITY,
        "few_shot": FewShot(episodes=10, queries=2, epochs=5, size=16),
        "landmarks": Landmarks(epochs=1, batch_size=8, size=32),
        "inversion": Inversion(images=2, steps=2, size=80),
    },
    toy={
        "imagenet": {"train": 40, "val": 20, "size": 24, "seed": 0},
        "voc": {"train": 12, "test": 8, "train2012": 8, "size": 64, "seed": 0},
        "places": {"train": 24, "val": 6, "size": 32, "seed": 0},
        "synthia": {"frames": 2, "rand": 1, "size": 64, "seed": 0},
        "coco": {"train": 20, "val": 4, "size": 64, "seed": 0},
        "cityscapes": {"train": 4, "val": 2, "size": 32, "seed": 0},
        "mini_imagenet": {"per_class": 10, "size": 32, "seed": 0},
        "celeba": {"images": 60, "identities": 20, "seed": 0},
    },
)
SCALES["tiny"] = TINY

if __name__ == "__main__":
    from goodtransfer.cli import main

    raise SystemExit(
        main(["study", "run", "--scale", "tiny", "--table", "3", "--out", sys.argv[1]])
    )
