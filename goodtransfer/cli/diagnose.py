"""``goodtransfer diagnose``: where detections fail, and whether two models fail differently."""

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from goodtransfer.analysis.detections import GroundTruth
    from goodtransfer.analysis.error_bootstrap import Estimate
    from goodtransfer.analysis.error_measures import Measures
    from goodtransfer.analysis.errors import Diagnosis
    from goodtransfer.metrics.voc import Floats

_PANELS = 100  # more would take minutes to draw, and nobody can look at them

EXAMPLES = """examples:
  goodtransfer diagnose VOC_RESULTS --gt /data/VOCdevkit --out errors
                       VOC_RESULTS holds comp4_det_test_aeroplane.txt and so on, with lines
                       of image, score, x1, y1, x2, y2; images are those of 2007/test
  goodtransfer diagnose results.json --gt instances_val2017.json --out errors
                       COCO's results, on COCO's ground truth
  goodtransfer diagnose supervised/detections.safetensors moco/detections.safetensors \\
      --gt /data/VOCdevkit --names supervised moco --out errors
                       two models of a study (its results/KEY), and their difference
  goodtransfer diagnose found --gt shop --split 2024/val --classes shelf cart basket \\
      --similar cart,basket --out errors
                       classes of your own, two of them similar
  goodtransfer diagnose found --gt /data/VOCdevkit --out errors \\
      --panels sheep cat tvmonitor animals=bird,cat,cow,dog,horse,sheep
                       the panels of the paper's Figure 1, and a group of classes

what a false positive is called, the first that holds:
  Loc  overlaps an object of its class by an IoU of .1 or more, too little or once too often
  Sim  overlaps an object of a similar class
  Oth  overlaps an object of any other class
  BG   overlaps no object

--out gets diagnosis.json, figure1.png (types among the first 25 to 400 false positives) and
figure7.png (what the first N detections are, N the number of objects).
"""


def main(argv: Sequence[str]) -> int:
    """Diagnose models, compare them to the first, print and write what came out."""
    arguments = _parser().parse_args(argv)
    for name in ("resamples", "seed"):
        if (number := getattr(arguments, name)) < 0:
            raise ValueError(f"Expected --{name} of 0 or more, but got {number}.")
    if arguments.out.is_file():
        raise NotADirectoryError(f"Expected a folder as --out, but {arguments.out} is a file.")
    from goodtransfer.analysis.detection_files import read_detections
    from goodtransfer.analysis.error_figures import check_packages
    from goodtransfer.analysis.error_measures import measure
    from goodtransfer.analysis.errors import diagnose

    check_packages()
    files = dict(zip(_names(arguments), arguments.detections, strict=True))
    truth = _ground_truth(arguments)
    groups = arguments.similar and [group.split(",") for group in arguments.similar]
    diagnoses = {
        name: diagnose(read_detections(path, truth), truth, groups) for name, path in files.items()
    }
    options = {"double_count": arguments.double_count, "interpolation": arguments.ap}
    measures = {name: measure(of, **options) for name, of in diagnoses.items()}
    panels = _panels(arguments.panels, truth)
    estimates, differences = _estimates(diagnoses, measures, options, arguments)
    _draw(measures, panels, arguments.out)
    report = _report(arguments, files, diagnoses, estimates, differences)
    path = arguments.out / "diagnosis.json"
    path.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    print("\n".join(_text(diagnoses, measures, estimates, differences)))
    print(f"\n{path}\n{arguments.out / 'figure1.png'}\n{arguments.out / 'figure7.png'}")
    return 0


# --- What goes in


def _names(arguments: argparse.Namespace) -> list[str]:
    paths: list[Path] = arguments.detections
    candidates = (
        [arguments.names]
        if arguments.names
        else [[path.stem for path in paths], [path.resolve().parent.name for path in paths]]
    )
    for names in candidates:
        if len(set(names)) == len(names) == len(paths):
            return list(names)
    raise ValueError(
        f"Expected a different name for each of {len(paths)} models, but got "
        f"{' '.join(candidates[-1])}: give as many with --names."
    )


def _ground_truth(arguments: argparse.Namespace) -> "GroundTruth":
    from goodtransfer.analysis.detection_files import class_names_in, read_coco
    from goodtransfer.data.voc import VOC_CLASSES
    from goodtransfer.study.voc_truth import read_voc

    if arguments.gt.suffix == ".json":
        return read_coco(arguments.gt)
    names = arguments.classes or class_names_in(arguments.detections[0]) or VOC_CLASSES
    return read_voc(arguments.gt, arguments.split, names)


def _panels(given: Sequence[str] | None, truth: "GroundTruth") -> dict[str, list[int]]:
    """Title and classes of each picture; without any wish, the mean and each of not too many classes."""
    names = list(truth.class_names)
    panels = {f"mean of {len(names)} classes": list(range(len(names)))}
    if not given and len(names) <= _PANELS:
        panels |= {name: [label] for label, name in enumerate(names)}
    for panel in given or ():
        title, _, classes = panel.partition("=")
        members = (classes or title).split(",")
        unknown = [name for name in members if name not in names]
        if unknown:
            raise ValueError(
                f"Expected --panels of CLASS or TITLE=CLASS,CLASS with classes among "
                f"{', '.join(names):.200}, but got {unknown[0]!r}: correct its name."
            )
        panels[title] = [names.index(name) for name in members]
    return panels


# --- What comes out


def _estimates(
    diagnoses: "Mapping[str, Diagnosis]",
    measures: "Mapping[str, Measures]",
    options: Mapping[str, Any],
    arguments: argparse.Namespace,
) -> "tuple[dict[str, Estimate], dict[str, Estimate]]":
    """Of each model, and of the difference of each later one to the first."""
    import numpy as np

    from goodtransfer.analysis.error_bootstrap import bootstrap, estimate
    from goodtransfer.analysis.error_measures import flat

    values: list[Floats] = [flat(of) for of in measures.values()]
    samples = np.full((len(values), 1, *values[0].shape), np.nan)
    if arguments.resamples:
        samples = bootstrap(
            list(diagnoses.values()), arguments.resamples, seed=arguments.seed, progress=True, **options
        )  # fmt: skip
    first, *others = measures
    pairs = zip(others, values[1:], samples[1:], strict=True)
    return (
        {name: estimate(v, s) for name, v, s in zip(measures, values, samples, strict=True)},
        {f"{n} - {first}": estimate(v - values[0], s - samples[0]) for n, v, s in pairs},
    )


def _draw(
    measures: "Mapping[str, Measures]", panels: Mapping[str, Sequence[int]], out: Path
) -> None:
    from goodtransfer.analysis.error_figures import draw_shares, draw_trend

    draw_trend(measures, panels, out / "figure1.png")
    draw_shares(measures, panels, out / "figure7.png")


def _report(
    arguments: argparse.Namespace,
    files: Mapping[str, Path],
    diagnoses: "Mapping[str, Diagnosis]",
    estimates: "Mapping[str, Estimate]",
    differences: "Mapping[str, Estimate]",
) -> dict[str, Any]:
    """What the JSON says; null is undefined."""
    some = next(iter(diagnoses.values()))
    names, pairs = some.truth.class_names, some.similar
    models = {}
    for name, diagnosis in diagnoses.items():
        counts = {
            label: {
                "objects": len(errors.objects),
                "detections": len(errors.rows),
                "false positives": int((errors.kinds > 0).sum()),
            }
            for label, errors in zip(names, diagnosis.classes, strict=True)
        }
        models[name] = {"file": str(files[name]), "counts": counts} | _by_class(
            estimates[name], names
        )
    return {
        "ground truth": str(arguments.gt),
        "images": len(some.truth.images),
        "similar classes": {
            name: [other for other, alike in zip(names, row, strict=True) if alike]
            for name, row in zip(names, pairs, strict=True)
        },
        "double count": arguments.double_count,
        "AP": arguments.ap,
        "resamples": arguments.resamples,
        "seed": arguments.seed,
        "models": models,
        "differences": {name: _by_class(of, names) for name, of in differences.items()},
    }


def _by_class(estimates: "Estimate", names: Sequence[str]) -> dict[str, Any]:
    from goodtransfer.analysis.error_measures import QUANTITIES

    def leaf(place: int, number: int) -> dict[str, float | None]:
        found = {key: float(ends[place, number]) for key, ends in estimates._asdict().items()}
        return {key: None if value != value else value for key, value in found.items()}

    def nested(place: int) -> dict[str, dict[str, Any]]:
        tree: dict[str, dict[str, Any]] = {}
        for number, (of, part) in enumerate(QUANTITIES):
            tree.setdefault(of, {})[part] = leaf(place, number)
        return tree

    return {
        "mean": nested(len(names)),
        "classes": {name: nested(place) for place, name in enumerate(names)},
    }


def _text(
    diagnoses: "Mapping[str, Diagnosis]",
    measures: "Mapping[str, Measures]",
    estimates: "Mapping[str, Estimate]",
    differences: "Mapping[str, Estimate]",
) -> list[str]:
    """The tables of the means over the classes."""
    some = next(iter(diagnoses.values()))
    names = some.truth.class_names
    lines = [
        f"Mean of {len(names)} classes, where defined, on {len(some.truth.images):,} images, %",
        "",
    ]
    lines += _table({name: _cells(of, signed=False) for name, of in estimates.items()})
    lines += ["", *_gaps(names, diagnoses, measures)]
    if not some.similar.any():
        lines.append("No classes are called similar, so Sim is 0: name groups with --similar.")
    if any(((of.value < of.low) | (of.value > of.high))[-1].any() for of in estimates.values()):
        lines.append(
            "An interval may lie beside its value: the noise of a resample lifts AP, which takes the "
            "best precision at a recall or more. In differences most of that cancels."
        )
    if differences:
        columns = {
            name: [
                f"{cell}  {verdict:>12}"
                for cell, verdict in zip(_cells(of, signed=True), of.verdicts()[-1], strict=True)
            ]
            for name, of in differences.items()
        }
        lines += [
            "",
            "Differences in points, over the classes that both have",
            "",
            *_table(columns),
        ]
        lines += [
            "",
            "Each line is judged alone: of 20 without a difference one would be called so.",
        ]
    return lines


def _cells(estimates: "Estimate", *, signed: bool) -> list[str]:
    def shown(number: float) -> str:
        return f"{round(number, 1) + 0.0:{'+' if signed else ''}.1f}"  # -0.0 becomes 0.0

    return [
        "undefined" if value != value
        else shown(value) if low != low
        else f"{shown(value)} [{shown(low)}, {shown(high)}]"
        for value, low, high in zip(*(ends[-1] for ends in estimates), strict=True)
    ]  # fmt: skip


def _table(columns: Mapping[str, Sequence[str]]) -> list[str]:
    from goodtransfer.analysis.error_measures import QUANTITIES

    widths = {name: max(len(name), *map(len, cells)) for name, cells in columns.items()}
    lines = [" " * 38 + "".join(f"  {name:>{width}}" for name, width in widths.items())]
    before = ""
    for number, (of, part) in enumerate(QUANTITIES):
        cells = (f"  {columns[name][number]:>{width}}" for name, width in widths.items())
        lines.append(f"{of if of != before else '':<27}{part:<11}{''.join(cells)}")
        before = of
    return [line.rstrip() for line in lines]


def _gaps(
    names: Sequence[str], diagnoses: "Mapping[str, Diagnosis]", measures: "Mapping[str, Measures]"
) -> list[str]:
    """Which classes a mean does without, and why."""
    import numpy as np

    from goodtransfer.analysis.error_measures import TICKS

    some = next(iter(diagnoses.values()))
    empty = [n for n, e in zip(names, some.classes, strict=True) if not len(e.objects)]
    lines = [f"{', '.join(empty)}: undefined, no objects to be found."] if empty else []
    for name, of in measures.items():
        known = np.isfinite(of.trend[..., 0]).sum(0)
        few = [f"{n} at {tick}" for n, tick in zip(known, TICKS, strict=True) if n < len(names)]
        if few:
            lines.append(f"Classes of {name} with as many false positives: {', '.join(few)}.")
    return lines


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "goodtransfer diagnose", description=__doc__, epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    add = parser.add_argument
    add("detections", type=Path, nargs="+", metavar="DETECTIONS",
        help="of each model: the study's detections.safetensors, COCO's results as .json, or a "
        "folder of VOC's comp4_det_test_CLASS.txt; the first is what others are compared to")  # fmt: skip
    add("--gt", type=Path, required=True, metavar="PATH",
        help="a VOCdevkit (or the folder that holds it), or COCO's instances .json")  # fmt: skip
    add("--out", type=Path, required=True, metavar="FOLDER", help="gets the JSON and the figures")
    add("--split", default="2007/test", help="of the VOCdevkit (default: 2007/test)")
    add("--classes", nargs="+", metavar="CLASS",
        help="of the VOCdevkit (default: those a .safetensors names, else VOC's)")  # fmt: skip
    add("--names", nargs="+", metavar="NAME", help="of the models (default: their file or folder)")
    add("--similar", nargs="+", metavar="CLASS,CLASS",
        help="groups of similar classes (default: for VOC's the toolbox's, else none)")  # fmt: skip
    add("--panels", nargs="+", metavar="CLASS",
        help="of the figures, or TITLE=CLASS,CLASS for a mean (default: every class, up to 100)")  # fmt: skip
    add("--double-count", action="store_true",
        help="read Figure 1 as the toolbox does, which counts background twice")  # fmt: skip
    add("--ap", choices=("11-point", "area"), default="11-point",
        help="as VOC 2007 (default), or as VOC 2010 and the toolbox")  # fmt: skip
    add("--resamples", type=int, default=1000, metavar="N",
        help="of the bootstrap over images (default: 1000; 0 for no intervals)")  # fmt: skip
    add("--seed", type=int, default=0, help="of the bootstrap (default: 0)")
    return parser
