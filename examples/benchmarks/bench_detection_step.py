"""Where a training step of the R50-C4 goes at 800 px: all but the four big parts, and which it is.

    python examples/benchmarks/bench_detection_step.py --steps 3

The four parts that any C4 detector pays for: the trunk, the RPN's 3 x 3 convolution, RoI-align and
res5, forward and backward. Everything else (padding, proposals, NMS, matching, sampling, the losses,
the extra norm, the predictors, the optimizer) should be at most 15 % of a step. Parts are told by
marks in the order in which one stream runs them, forward and backward.
"""

import argparse
import time
from collections import Counter
from typing import Any

import torch
from torch import Tensor

from goodtransfer.encoders import build
from goodtransfer.optim import without_norm_decay
from goodtransfer.transfer.rcnn_c4 import RCNNC4, Target

PARTS = ("trunk", "RPN convolution", "RoI-align", "res5")


class Clock:
    """The time since the last mark belongs to the part that ends with this one."""

    def __init__(self, device: torch.device) -> None:
        self.device, self.spent = device, Counter[str]()
        self.last = time.perf_counter()

    def mark(self, part: str) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        now = time.perf_counter()
        self.spent[part] += now - self.last
        self.last = now


def watch(detector: RCNNC4, clock: Clock) -> None:
    """Marks around the four parts and the stages between them."""
    for module, part in ((detector.rpn_head.conv, PARTS[1]), (detector.encoder.layer4, PARTS[3])):
        end = lambda *_, part=part: clock.mark(part)  # noqa: E731
        module.register_forward_pre_hook(lambda *_: clock.mark("heads"))
        module.register_forward_hook(end)
        module.register_full_backward_pre_hook(lambda *_: clock.mark("heads and losses, backward"))
        module.register_full_backward_hook(end)

    def after_trunk(module: Any, inputs: Any, output: dict[int, Tensor]) -> None:
        clock.mark(PARTS[0])
        output[4].register_hook(lambda _: clock.mark("heads and losses, backward"))

    detector.encoder.register_forward_pre_hook(lambda *_: clock.mark("padding"))
    detector.encoder.register_forward_hook(after_trunk)
    for name, stage in {
        "propose": "proposals and NMS",
        "rpn_losses": "RPN matching and losses",
        "sample": "RoI matching and sampling",
        "head_losses": "RoI losses",
    }.items():
        setattr(detector, name, marked(getattr(detector, name), stage, clock))
    pool = detector.pool

    def pooled(c4: Tensor, boxes: Any) -> Tensor:
        clock.mark("heads")
        own = c4.view_as(c4)  # its gradient is there when RoI-align's backward has ended
        own.register_hook(lambda _: clock.mark(PARTS[2]))
        found = pool(own, boxes)
        clock.mark(PARTS[2])
        return found

    detector.pool = pooled  # type: ignore[method-assign]


def marked(stage: Any, name: str, clock: Clock) -> Any:
    def timed(*given: Any) -> Any:
        clock.mark("heads")
        found = stage(*given)
        clock.mark(name)
        return found

    return timed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--images", type=int, default=1)
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    torch.manual_seed(0)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    detector = RCNNC4(build("resnet50"), 20).to(device).train()
    optimizer = torch.optim.SGD(without_norm_decay(detector, 1e-4), lr=2e-5, momentum=0.9)
    images = [
        torch.randint(0, 256, (3, 800, 1067), dtype=torch.uint8, device=device)
        for _ in range(given.images)
    ]
    corners = torch.tensor([[80.0, 90.0], [300.0, 200.0], [640.0, 410.0]])
    boxes = torch.cat((corners, corners + torch.tensor([[210.0, 330.0]])), dim=1).to(device)
    labels = torch.tensor([3, 7, 14], device=device)
    targets: list[Target] = [{"boxes": boxes, "labels": labels} for _ in images]
    clock = Clock(device)
    watch(detector, clock)
    for step in range(given.steps + 1):
        if step == 1:  # the first one warms up
            clock.spent.clear()
        clock.mark("between")
        losses, _ = detector(images, targets)
        loss = torch.stack(list(losses.values())).sum()
        clock.mark("RoI losses")
        loss.backward()
        clock.mark(PARTS[0])
        optimizer.step()
        optimizer.zero_grad()
        clock.mark("optimizer")
    del clock.spent["between"]
    whole = sum(clock.spent.values())
    print(f"{given.images} image(s) of 800 x 1067, {whole / given.steps:.2f} s a step on {device}")
    for part, seconds in clock.spent.most_common():
        sign = "*" if part in PARTS else " "
        print(f"{sign} {part:28} {seconds / given.steps:8.3f} s {100 * seconds / whole:6.2f} %")
    rest = whole - sum(clock.spent[part] for part in PARTS)
    print(f"everything but the four marked *: {100 * rest / whole:.2f} % (at most 15)")


if __name__ == "__main__":
    main()
