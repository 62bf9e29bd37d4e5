r"""Which backbone detects better? Fine-tune several on one VOC data set and score them alike.

    python examples/detect_voc.py ROOT --out found --encoders \
        a.safetensors timm:tf_efficientnet_lite0@lite0.safetensors resnet18

ROOT holds VOCdevkit; encoders are whatever ``load_encoder`` takes (a bare name is untrained). The
defaults are small enough for a CPU; ``--paper`` runs the paper's protocol instead. Prints a table
and leaves in ``--out`` every detection, the precision over recall, and pictures of test images.
"""

import argparse
import json
import re
from dataclasses import replace
from pathlib import Path

import pytorch_lightning as pl

from goodtransfer import Detection, VOCDetectionDataModule, load_encoder
from goodtransfer.study.detections import KeepDetections, write_detections
from goodtransfer.study.scales import SCALES
from goodtransfer.study.transfers import VOC07


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("root", type=Path)
    parser.add_argument("--encoders", nargs="+", required=True)
    parser.add_argument("--splits", nargs=2, default=["2007/trainval", "2007/test"])
    parser.add_argument("--out", type=Path, default=Path("found"))
    parser.add_argument("--steps", type=int, help="optimizer steps, if not the scale's")
    parser.add_argument("--paper", action="store_true", help="9,000 steps of 16 images at 800 px")
    parser.add_argument("--accumulate", type=int, default=1, help="micro-batches of a step")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()

    protocol = VOC07 if given.paper else SCALES["small"].protocol("voc07")
    if given.steps:
        factor = given.steps * protocol.batch / 16 / protocol.iterations
        protocol = replace(
            protocol,
            iterations=round(protocol.iterations * factor),
            milestones=tuple(round(m * factor) for m in protocol.milestones),
        )
    train, test = given.splits
    for spec in given.encoders:
        pl.seed_everything(given.seed, verbose=False)
        data = VOCDetectionDataModule(
            given.root,
            train=train,
            test=test,
            batch_size=protocol.batch // given.accumulate,
            seed=given.seed,
        )
        folder = given.out / re.sub(r"[^\w.-]+", "_", spec).strip("._")
        folder.mkdir(parents=True, exist_ok=True)
        task = Detection(load_encoder(spec), seed=given.seed, **protocol.arguments())
        kept = KeepDetections()
        trainer = pl.Trainer(
            max_epochs=-1,  # the task knows its steps
            accumulate_grad_batches=given.accumulate,
            callbacks=[kept],
            default_root_dir=folder,
            logger=False,
            enable_checkpointing=False,
            enable_model_summary=False,
            num_sanity_val_steps=0,
        )
        trainer.fit(task, data)
        scores = trainer.test(task, data, verbose=False)[0]
        write_detections(folder, kept.found, task.ap, data)
        (folder / "metrics.json").write_text(json.dumps({**scores, "fidelity": task.fidelity}))
        print(f"{spec}: " + ", ".join(f"{name} {value:.1f}" for name, value in scores.items()))


if __name__ == "__main__":
    main()
