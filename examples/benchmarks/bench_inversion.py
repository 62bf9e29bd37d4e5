"""A step of feature inversion, as upstream orders it and as goodtransfer runs it: CPU seconds.

    OMP_NUM_THREADS=1 python examples/benchmarks/bench_inversion.py --threads 1

The paper's setting: noise 32 x 256 x 256, 2,606,763 parameters, images of 224 pixels, stage 5 of an
untrained ResNet-50. Each line adds to the one before. All ways take turns, and the least of each one's
rounds counts. Their first losses are printed beside each other: they differ by rounding alone.
"""

import argparse
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from goodtransfer.analysis.inversion import LR, Search, prepare, seeded
from goodtransfer.analysis.skip_net import SkipNet
from goodtransfer.encoders import build


def literal(network: SkipNet, noise: Tensor) -> Tensor:
    """The same parameters, one operation after the other in upstream's order."""

    def finish(x: Tensor, norm: nn.BatchNorm2d) -> Tensor:
        x = F.batch_norm(x, None, None, norm.weight, norm.bias, training=True)
        return F.leaky_relu(x, 0.2, inplace=True)

    def conv(x: Tensor, layer: nn.Conv2d) -> Tensor:
        return F.conv2d(x, layer.weight, layer.bias, padding=layer.weight.shape[-1] // 2)

    def scale(s: nn.Module, x: Tensor) -> Tensor:
        passing = finish(conv(x, s.passing[0]), s.passing[1])
        x = finish(F.avg_pool2d(conv(x, s.down[0]), 2), s.down[1])
        x = finish(conv(x, s.same[0]), s.same[1])
        if not isinstance(s.deeper, nn.Identity):
            x = scale(s.deeper, x)
        x = torch.cat([passing, F.interpolate(x, scale_factor=2, mode="nearest")], 1)
        x = F.batch_norm(x, None, None, s.merge.norm.weight, s.merge.norm.bias, training=True)
        x = finish(conv(x, s.merge.conv), s.merged[0])
        return finish(conv(x, s.mix[0]), s.mix[1])

    return conv(scale(network.hourglass, noise), network.rgb)


def by_hand(image: Tensor, *, frozen: bool, merged: bool) -> Callable[[], Tensor]:
    """A step without :class:`Search`."""
    with seeded(0):
        network = SkipNet()
        noise = network.noise(224, 224)
    with seeded(0):
        encoder = build("resnet50").eval().requires_grad_(not frozen)
    with torch.no_grad():
        target = encoder(image[None])[5]
    adam = torch.optim.Adam(network.parameters(), lr=LR)

    def step() -> Tensor:
        made = network(noise) if merged else literal(network, noise)
        loss = F.mse_loss(encoder(made[..., :224, :224], normalized=True)[5], target)
        adam.zero_grad()
        loss.backward()
        adam.step()
        return loss.detach()

    return step


def by_search(image: Tensor) -> Callable[[], Tensor]:
    search: Search = prepare("resnet50", image, device="cpu")

    def step() -> Tensor:
        search.update()
        return search.losses[-1]

    return step


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=4, help="in a round")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    image = torch.rand(3, 224, 224, generator=torch.Generator().manual_seed(0))
    ways = {
        "upstream's order": by_hand(image, frozen=False, merged=False),
        "no gradients of the encoder's own": by_hand(image, frozen=True, merged=False),
        "convolutions merged with resizing": by_hand(image, frozen=True, merged=True),
        "channels_last, fused Adam (Search)": by_search(image),
    }
    first = {name: float(step()) for name, step in ways.items()}
    seconds = dict.fromkeys(ways, float("inf"))
    for _ in range(args.rounds):
        for name, step in ways.items():
            start = time.process_time()
            for _ in range(args.steps):
                step()
            seconds[name] = min(seconds[name], (time.process_time() - start) / args.steps)
    slowest = max(seconds.values())
    print(f"{args.threads} threads, least of {args.rounds} rounds of {args.steps} steps")
    print(f"{'':36}{'CPU s per 100 steps':>20}{'times faster':>14}{'first loss':>14}")
    for name, value in seconds.items():
        print(f"{name:36}{100 * value:20.1f}{slowest / value:14.2f}{first[name]:14.6g}")


if __name__ == "__main__":
    main()
