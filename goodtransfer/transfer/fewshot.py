"""Few-shot classification on frozen features (the paper's Table 4; protocol 5)."""

from collections.abc import Sequence
from contextlib import suppress
from copy import deepcopy
from typing import Any, NamedTuple

import numpy as np
import pytorch_lightning as pl
import torch
from torch import Tensor, nn

from goodtransfer.callbacks.pictures import as_pixels, captioned, fitted, grid, keep_picture
from goodtransfer.distributed import gather, world_size
from goodtransfer.encoders import Encoder, pooled
from goodtransfer.transfer.checks import check_encoder
from goodtransfer.transfer.episodes import (
    Episodes,
    accuracies,
    best_rate,
    check_enough,
    epoch_orders,
    initial_heads,
    mean_ci95,
    sample_episodes,
    train_heads,
)
from goodtransfer.views import as_batch, check_range
from goodtransfer.weights import describe_input, load_encoder, restore_input

LEARNING_RATES = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0)
_SIDE, _SHOWN = 120, 3  # pixels of a picture's images; queries shown of each class


class Features(NamedTuple):
    """What is kept of the images of a part.

    Attributes:
        features: (N, D), fp32.
        labels: (N,), -1 for an image without.
        numbers: of the images in their data set (N,).
    """

    features: Tensor
    labels: Tensor
    numbers: Tensor


class FewShot(pl.LightningModule):
    """Episodes of new classes, a linear classifier trained on a few images of each; it only tests.

    The defaults are the paper's: 600 episodes of 5 classes, 1 or 5 support images and 15 queries of
    each, 100 epochs on the frozen encoder's pooled last features. These are not normalised; since
    their norms differ, "we cross-validate the best learning rate for each method": the rate of the
    highest accuracy on episodes of the validation classes, of equals the smallest::

        task, data = FewShot("encoder.safetensors"), MiniImageNetDataModule(ROOT)
        trainer.test(task, data)

    Any two loaders will do, of images of the validation classes and of the novel ones; a batch is
    ``((view,), label, index)``, ``index`` the image's number in the loader's data set. From folders
    of classes::

        parts = [
            ImageFolderDataModule(ROOT, train=name, val=None).features_dataloader("train")
            for name in ("validation", "novel")
        ]
        trainer.test(task, parts)

    Args:
        encoder: a name, a weight file (see ``weights.load_encoder``), or a module; copied.
        way: classes of an episode.
        shots: support images of each of its classes; every number is scored by itself.
        queries: images to classify of each of its classes.
        episodes: to choose the learning rate by, and as many to report.
        lrs: the learning rates.
        epochs: over an episode's support images.
        batch: support images of a step.
        weight_decay: of the classifiers.
        seed: of the episodes, the classifiers' starts and the orders, which depend on nothing else.

    Logs, in percent: ``novel_1shot`` and ``novel_1shot_ci95`` (the 95 % interval of the mean over
    episodes), the same for 5, and ``chosen_lr_1shot``, ``chosen_lr_5shot``. ``few_shot.png``
    shows an episode: its support images, and queries with the class they are taken for.
    ``episode_accuracies`` holds, by shot, the accuracy of each of the last test's episodes (E,).

    Raises:
        ValueError: for arguments that cannot work, an encoder whose features cannot tell images
            apart, other than two loaders, or too few classes or images for an episode.
    """

    # What a data module gives as test loaders, in this order.
    feature_parts = ("validation", "novel")

    def __init__(
        self,
        encoder: str | nn.Module = "resnet18",
        *,
        way: int = 5,
        shots: Sequence[int] = (1, 5),
        queries: int = 15,
        episodes: int = 600,
        lrs: Sequence[float] = LEARNING_RATES,
        epochs: int = 100,
        batch: int = 4,
        weight_decay: float = 1e-3,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if not shots or min(*shots, way, queries, episodes, epochs, batch) < 1:
            raise ValueError(
                "Expected `shots`, `way`, `queries`, `episodes`, `epochs` and `batch` of at least 1, "
                f"but got {shots}, {way}, {queries}, {episodes}, {epochs} and {batch}."
            )
        if not lrs or min(lrs) <= 0:
            raise ValueError(f"Expected argument `lrs` to be positive rates, but got {lrs}.")
        own = deepcopy(encoder) if isinstance(encoder, nn.Module) else encoder
        self.encoder: Encoder = load_encoder(own).requires_grad_(False).eval()
        self.save_hyperparameters(ignore=["encoder"])
        self.hparams["encoder"] = self.encoder.name
        self.way, self.shots, self.queries, self.episodes = way, tuple(shots), queries, episodes
        self.lrs, self.epochs, self.batch = tuple(lrs), epochs, batch
        self.weight_decay, self.seed = weight_decay, seed
        self._found: tuple[list[Features], ...] = ()
        self.episode_accuracies: dict[int, Tensor] = {}

    # --- Features

    def setup(self, stage: str) -> None:
        check_encoder(self.encoder, (5,), "FewShot")

    def on_test_start(self) -> None:
        loaders = self._loaders()
        if len(loaders) != len(self.feature_parts):
            raise ValueError(
                "Expected two test loaders, of the validation classes and of the novel ones, but got "
                f"{len(loaders)}: pass Trainer.test(task, [validation, novel]), or a data module "
                "that has both, such as MiniImageNetDataModule."
            )
        for part, loader in enumerate(loaders):
            labels = getattr(getattr(loader, "dataset", None), "targets", None)
            if labels is not None:  # else the images tell, later
                self._check_labels(torch.as_tensor(labels), part)
        self._found = tuple([] for _ in loaders)

    def _loaders(self) -> Sequence[Any]:
        loaders: Any = self.trainer.test_dataloaders
        return loaders if isinstance(loaders, Sequence) else [loaders]

    def _check_labels(self, labels: Tensor, part: int) -> None:
        images = max(self.shots) + self.queries
        name, names = self.feature_parts[part], self._class_names(part)
        check_enough(labels, way=self.way, images=images, part=name, names=names)

    def _class_names(self, part: int) -> list[str] | None:
        data: Any = getattr(self.trainer, "datamodule", None)
        return data.label_names(self.feature_parts[part]) if hasattr(data, "label_names") else None

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        """Images (N, 3, H, W) to features (N, D)."""
        return pooled(self.encoder, images).float()

    def test_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        given, found = as_batch(batch), self._found[dataloader_idx]
        view, labels, index = given.views[0], given.labels_for("FewShot"), given.index
        if batch_idx == 0 and view.is_floating_point() and self.encoder.normalization is not None:
            check_range(view)
        if index is None:
            if world_size() > 1:
                raise ValueError(
                    "Expected batches ((view,), label, index) on several ranks, since only the index "
                    "tells which images a rank repeats, but the loader gives none."
                )
            index = torch.arange(len(labels)) + sum(len(each.labels) for each in found)
        found.append(Features(self(view), labels, index.to(labels.device)))

    def _gathered(self, part: int) -> Features:
        """The features of all ranks, each image once, in the order of their index."""
        mine = [torch.cat(values) for values in zip(*self._found[part], strict=True)]
        rows = [gather(values)[0] for values in mine]
        _, first = np.unique(rows[2].cpu().numpy(), return_index=True)
        found = Features(*(values[torch.from_numpy(first).to(self.device)] for values in rows))
        faulty = found.numbers[~found.features.isfinite().all(1)].tolist()
        if faulty:
            raise ValueError(
                f"Expected finite features, but {self.encoder.name} gave NaN or infinite ones for "
                f"{len(faulty)} of {len(found.numbers)} {self.feature_parts[part]} images, such as "
                f"number {faulty[0]}: test in 32 bits, or check the encoder's weights."
            )
        self._check_labels(found.labels.cpu(), part)
        return found

    # --- Episodes

    def on_test_epoch_end(self) -> None:
        validation, novel = (self._gathered(part) for part in range(len(self.feature_parts)))
        self._found = ()
        for shot in self.shots:
            scores, _ = self._scores(validation, shot, self.lrs)
            lr = best_rate(accuracies(scores), self.lrs)
            scores, episodes = self._scores(novel, shot, [lr])
            self.episode_accuracies[shot] = accuracies(scores[0]).cpu()
            mean, interval = mean_ci95(self.episode_accuracies[shot])
            # All ranks compute the same.
            self.log(f"novel_{shot}shot", mean, prog_bar=True, sync_dist=True)
            self.log(f"novel_{shot}shot_ci95", interval, sync_dist=True)
            self.log(f"chosen_lr_{shot}shot", lr, sync_dist=True)
        self._draw(novel, episodes, scores[0, 0].argmax(-1).view(self.way, -1).tolist())

    def _scores(self, found: Features, shot: int, lrs: Sequence[float]) -> tuple[Tensor, Episodes]:
        """The scores of queries (R, E, W * Q, W), and the episodes they are of."""
        episodes = sample_episodes(
            found.labels.cpu(),
            episodes=self.episodes,
            way=self.way,
            shot=shot,
            queries=self.queries,
            seed=self.seed,
        )
        chance = torch.Generator().manual_seed(self.seed)
        heads = initial_heads(self.episodes, self.way, found.features.shape[1], chance)
        orders = epoch_orders(self.episodes, self.epochs, self.way * shot, chance)
        options: Any = {"batch": self.batch, "weight_decay": self.weight_decay}
        return train_heads(found.features, episodes, heads, orders, lrs, **options), episodes

    def _draw(self, novel: Features, episodes: Episodes, predicted: list[list[int]]) -> None:
        """Save the first episode, a column for each class: a support image, then some queries."""
        if not self.trainer.is_global_zero:
            return
        dataset: Any = getattr(self._loaders()[1], "dataset", {})
        names, classes = self._class_names(1), episodes.classes[0].tolist()
        called = [names[label] if names else str(label) for label in classes]
        support, query = (
            novel.numbers.cpu()[rows[0]] for rows in (episodes.support, episodes.query)
        )

        def drawn(number: Tensor, text: str, right: bool | None = None) -> Tensor:
            image = as_pixels(as_batch(dataset[int(number)]).views[0])
            return captioned(fitted(image, _SIDE), text, right=right)

        with suppress(LookupError, NotImplementedError):  # no such images; the scores are there
            shown = [drawn(support[w, 0], name) for w, name in enumerate(called)]
            for q in range(min(_SHOWN, self.queries)):
                for w, guesses in enumerate(predicted):
                    shown.append(drawn(query[w, q], called[guesses[q]], guesses[q] == w))
            keep_picture(self.trainer, "few_shot", grid(shown, self.way))

    # --- Checkpoints

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["input"] = describe_input(self.encoder)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        restore_input(self.encoder, checkpoint["input"])
