"""What the dense tasks share: a fit counted in optimizer steps, and chance that a resume repeats."""

import random
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torchmetrics import Metric

from goodtransfer.distributed import gather, rank

NEVER = 2**62


@contextmanager
def seeded(device: torch.device, *place: str | int) -> Iterator[random.Random]:
    """Chance that depends on the place and the rank alone, PyTorch's own too.

    Args:
        device: that draws.
        place: seed, step, and what else tells one draw from another.
    """
    chance = random.Random(repr((*place, rank())))
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(chance.getrandbits(63))
        yield chance


def validate_within_fit(trainer: pl.Trainer) -> None:
    """Validate as Lightning does within an epoch, when it has passed it over in a resumed run."""
    validation = trainer.fit_loop.epoch_loop.val_loop
    validation.restarting, trainer.validating = False, True
    validation.run()
    trainer.training = True


class StepTask(pl.LightningModule):
    """A task whose fit ends after ``iterations`` optimizer steps, scored after those of ``eval_iters``.

    Attributes:
        iterations, eval_iters: in optimizer steps.
        prefix: of the logged scores.
        fidelity: how a run deviates from the paper, told by its first batch; kept in checkpoints.
        losses: of the last training batch, by name.
        scored: those of ``eval_iters`` that have been; kept in checkpoints.
    """

    iterations: int
    eval_iters: tuple[int, ...]
    prefix: str
    fidelity: str
    losses: Mapping[str, Tensor]
    scored: tuple[int, ...] = ()

    def setup(self, stage: str) -> None:
        if stage == "fit" and self.trainer.max_steps == -1:
            loop = self.trainer.fit_loop
            loop.epoch_loop.max_steps = self.iterations
            if loop.max_epochs == 1000:  # what Lightning takes where nobody says anything
                loop.max_epochs = -1

    def on_fit_start(self) -> None:
        self.fidelity = ""  # until the first batch tells
        if any(type(m) is nn.SyncBatchNorm and any(m.children()) for m in self.modules()):
            raise ValueError(
                "Expected batch norms alone under sync_batchnorm=True, but those of "
                f"{self.hparams['encoder']} hold activations, which PyTorch's conversion drops: leave "
                "it out, or take a trunk such as resnet50."
            )

    def images_a_step(self, images: int) -> int:
        """Over all ranks and micro-batches, where a batch has that many."""
        return images * self.trainer.world_size * self.trainer.accumulate_grad_batches

    def images_a_norm(self, images: int) -> int:
        """How many images share batch norm, where a batch has that many."""
        synced = any(isinstance(m, nn.SyncBatchNorm) for m in self.modules())
        return images * (self.trainer.world_size if synced else 1)

    def log_losses(self, losses: Mapping[str, Tensor]) -> Tensor:
        """Log each, and give their sum."""
        loss = torch.stack(list(losses.values())).sum()
        self.losses = {name: value.detach() for name, value in losses.items()}
        self.log("loss", loss.detach(), prog_bar=True)
        self.log_dict(self.losses)
        return loss

    def log_scores(self, metric: Metric) -> None:
        """Log what a metric computes over all ranks, under the prefix.

        Raises:
            ValueError: where no rank has scored an image.
        """
        if not self.trainer.sanity_checking:
            scored, _ = gather(torch.tensor([int(metric.update_called)], device=self.device))
            if not scored.any():
                raise ValueError(
                    "Expected images to score, but the validation or test loader gave none: pass "
                    "one that has some."
                )
            for name, value in metric.compute().items():  # over all ranks, so their mean is it
                # The metric is on the CPU, where NCCL cannot average.
                score = value.to(self.device, torch.float32)
                self.log(f"{self.prefix}_{name}", score, sync_dist=True)
            if self.trainer.state.fn == "fit":
                self.scored += (self.trainer.global_step,)

    def on_train_start(self) -> None:
        self._last_step = self.trainer.global_step
        if self._last_step == 0:
            self.scored = ()  # of an earlier fit
        self._score_missed()

    def on_fit_end(self) -> None:
        self._score_missed()  # of the last step, after which Lightning does not start again

    def _score_missed(self) -> None:
        """Score what was not, because the checkpoint was saved between a step and its score."""
        step = self.trainer.global_step
        if step in self.eval_iters and step not in self.scored and self.trainer.enable_validation:
            validate_within_fit(self.trainer)

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        # Lightning validates where the number of batches divides by this; it asks after this hook.
        step = self.trainer.global_step
        due = step != self._last_step and step in self.eval_iters
        self.trainer.val_check_batch, self._last_step = batch_idx + 1 if due else NEVER, step

    def on_train_end(self) -> None:
        done = self.trainer.global_step
        if done < self.iterations and not self.trainer.fast_dev_run:  # type: ignore[attr-defined]
            warnings.warn(
                f"The fit ended after {done} of {self.iterations} steps, before its schedule did: leave "
                "max_steps and max_epochs of the Trainer unset, or pass other `iterations`.",
                stacklevel=2,
            )

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["fidelity"], checkpoint["scored"] = self.fidelity, self.scored

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.fidelity = checkpoint["fidelity"]
        self.scored = checkpoint.get("scored", self.eval_iters)  # older ones do not tell
