"""Few-shot classifiers trained all at once, against upstream's loop: time, and equal accuracies.

    python examples/benchmarks/bench_few_shot.py

600 episodes of 5 classes with 15 queries of each, 512 features, 100 epochs, learning rate 0.01, one
thread. All at once: drawing the episodes, starts and orders, and training, by
`goodtransfer.transfer.episodes`. The loop is `tests/transfer/literal_few_shot.py`: CloserLookFewShot's,
an `nn.Linear` and a `torch.optim.SGD` for each episode; it runs on the first of the same episodes, from
the same starts in the same orders, and its time is scaled to 600. The features are of classes that
overlap, for an accuracy near 45 %: easy ones would hide a wrong step.
"""

import argparse
import sys
import time
from pathlib import Path

import torch

from goodtransfer.transfer.episodes import (
    accuracies,
    epoch_orders,
    initial_heads,
    mean_ci95,
    sample_episodes,
    train_heads,
)

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tests/transfer"))
from literal_few_shot import hard_features, literal_accuracy, literal_episode

FEATURES, WAY, EPOCHS, LR = 512, 5, 100, 0.01
SEPARATION = {1: 0.3, 5: 0.17}  # of the classes, by shot


def compare(shot: int, count: int, looped: int, runs: int) -> None:
    """Time both, and print what they found."""
    features, labels = hard_features(per_class=600, features=FEATURES, separation=SEPARATION[shot])
    ours = []
    for _ in range(runs):
        started = time.perf_counter()
        episodes = sample_episodes(labels, episodes=count, way=WAY, shot=shot)
        chance = torch.Generator().manual_seed(0)
        heads = initial_heads(count, WAY, FEATURES, chance)
        orders = epoch_orders(count, EPOCHS, WAY * shot, chance)
        (scores,) = train_heads(features, episodes, heads, orders, [LR])
        ours.append(time.perf_counter() - started)
    accuracy = accuracies(scores)

    started = time.perf_counter()
    literal = [
        literal_episode(features[s], features[q], WAY, weight, bias, order, LR)
        for _, s, q, weight, bias, order in zip(
            *(rows[:looped] for rows in (*episodes, *heads, orders)), strict=True
        )
    ]
    theirs = (time.perf_counter() - started) * count / looped

    found = torch.tensor([literal_accuracy(each, WAY) for each in literal])
    flipped = (torch.stack(literal).argmax(-1) != scores[:looped].argmax(-1)).sum()
    print(f"{WAY}-way {shot}-shot, accuracy {mean_ci95(accuracy)[0]:.2f} %")
    print(f"  the loop, {looped} episodes timed and scaled to {count}: {theirs:8.2f} s")
    print(f"  all at once, best of {runs}:                        {min(ours):8.3f} s")
    print(f"  ratio: {theirs / min(ours):.0f}")
    print(
        f"  of those {looped} episodes: accuracies {accuracy[:looped].mean():.4f} and "
        f"{found.mean():.4f} %, {flipped} of {WAY * 15 * looped} predictions differ, scores by up to "
        f"{(torch.stack(literal) - scores[:looped]).abs().max():.1e}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--episodes", type=int, default=600)
    parser.add_argument("--looped", type=int, default=40, help="episodes that the loop runs on")
    parser.add_argument("--runs", type=int, default=3)
    args = parser.parse_args()
    torch.set_num_threads(1)
    for shot in (5, 1):
        compare(shot, args.episodes, args.looped, args.runs)


if __name__ == "__main__":
    main()
