"""The pictures of a test: which images they show, where they are kept, and in which loggers."""

import io

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from PIL import Image
from pytorch_lightning.loggers import CSVLogger, TensorBoardLogger, WandbLogger
from torch.utils.data import DataLoader, IterableDataset

from goodtransfer.callbacks.pictures import (
    Pictures,
    as_pixels,
    captioned,
    fitted,
    grid,
    keep_picture,
)

SIDE = 10


class Painter(pl.LightningModule):
    """Draws each image, a number, as a square of that grey; ``outputs`` are twice the numbers."""

    def __init__(self, calls=None, **arguments):
        super().__init__()
        self.calls = calls
        self.pictures = Pictures("squares", side=SIDE, **arguments)

    def configure_callbacks(self):
        return [self.pictures]

    def test_step(self, batch, batch_idx):
        self.log("mean", batch.float().mean(), sync_dist=True)
        return {"twice": 2 * batch}

    def drawings(self, batch, outputs, first):
        assert torch.equal(outputs["twice"], 2 * batch)
        if self.calls:
            (self.calls / f"rank{self.global_rank}").touch()
        return [torch.full((3, SIDE, SIDE), n, dtype=torch.uint8) for n in batch[:first].tolist()]


class Endless(IterableDataset):
    """Numbers from 0 to 19, of which a loader does not know how many they are."""

    def __iter__(self):
        return iter(range(20))


def greys(file, columns):
    """The numbers in a grid, row by row; white places are left out."""
    picture = np.asarray(Image.open(file).convert("RGB")).astype(int)
    rows, wide = ((n - 4) // (SIDE + 4) for n in picture.shape[:2])
    assert (rows * (SIDE + 4) + 4, wide * (SIDE + 4) + 4) == picture.shape[:2]
    assert wide <= columns
    numbers = []
    for r in range(rows):
        for c in range(wide):
            top, left = 4 + r * (SIDE + 4), 4 + c * (SIDE + 4)
            square = picture[top : top + SIDE, left : left + SIDE]
            assert (square == square[0, 0]).all()
            numbers.append(int(square[0, 0, 0]))
    return [n for n in numbers if n != 255]


def run(options, loader, calls=None, **arguments):
    given = {k: arguments.pop(k) for k in ("shown", "columns") if k in arguments}
    module = Painter(calls, **given)
    trainer = pl.Trainer(**{**options, **arguments})
    trainer.test(module, loader, verbose=False)
    return module, trainer


# --- Which images


@pytest.mark.parametrize(
    ("images", "batch", "shown", "expected"),
    [
        (48, 4, 6, [0, 8, 16, 24, 32, 40]),  # the first of every second batch
        (44, 4, 6, [0, 4, 12, 20, 28, 36]),  # 11 batches: to the end, though 6 do not divide them
        (200, 2, 3, [0, 66, 132]),  # batches 0, 33 and 66 of 100
        (16, 4, 6, [0, 1, 4, 8, 9, 12]),  # fewer batches than pictures
        (9, 8, 6, [0, 1, 2, 8]),  # the last batch has one image only
        (3, 8, 6, [0, 1, 2]),
        (5, 1, 6, [0, 1, 2, 3, 4]),
    ],
)
def test_images_are_spread_over_the_batches(
    images, batch, shown, expected, tmp_path, trainer_options
):
    run(trainer_options, DataLoader(range(images), batch_size=batch), shown=shown)
    assert greys(tmp_path / "squares.png", columns=3) == expected


def test_limited_batches_are_all_there_are(tmp_path, trainer_options):
    loader = DataLoader(range(100), batch_size=2)
    run(trainer_options, loader, shown=3, columns=2, limit_test_batches=6)
    assert greys(tmp_path / "squares.png", columns=2) == [0, 4, 8]


def test_a_loader_of_unknown_length_shows_its_first_images(tmp_path, trainer_options):
    run(trainer_options, DataLoader(Endless(), batch_size=4), shown=6)
    assert greys(tmp_path / "squares.png", columns=3) == [0, 1, 2, 3, 4, 5]


def test_another_test_starts_afresh(tmp_path, trainer_options):
    module, trainer = run(trainer_options, DataLoader(range(4), batch_size=2), shown=2)
    trainer.test(module, DataLoader(range(50, 54), batch_size=2), verbose=False)
    assert greys(tmp_path / "squares.png", columns=3) == [50, 52]


def test_nothing_to_draw_leaves_no_file(tmp_path, trainer_options):
    module = Painter()
    module.drawings = lambda batch, outputs, first: []
    pl.Trainer(**trainer_options).test(module, DataLoader(range(4)), verbose=False)
    assert not list(tmp_path.rglob("*.png"))


# --- Where it is kept


def test_without_logger_it_is_in_the_root(tmp_path, trainer_options):
    run(trainer_options, DataLoader(range(4)))
    assert [p.relative_to(tmp_path).as_posix() for p in tmp_path.rglob("*.png")] == ["squares.png"]


def test_with_loggers_it_is_in_the_first_one_s_folder(tmp_path, trainer_options):
    loggers = [CSVLogger(tmp_path / "first", name="run"), CSVLogger(tmp_path / "second")]
    run(trainer_options, DataLoader(range(4)), logger=loggers)
    (file,) = tmp_path.rglob("*.png")
    assert file == tmp_path / "first/run/version_0/squares.png"
    assert greys(file, columns=3) == [0, 1, 2, 3]


def test_tensorboard_shows_the_very_picture(tmp_path, trainer_options):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    logger = TensorBoardLogger(tmp_path / "logs", name="run")
    run(trainer_options, DataLoader(range(7)), logger=logger, shown=4, columns=2)
    logger.experiment.flush()
    events = EventAccumulator(logger.log_dir, size_guidance={"images": 0})
    events.Reload()
    (image,) = events.Images("squares")
    assert image.step == 0
    shown = np.asarray(Image.open(io.BytesIO(image.encoded_image_string)))
    (file,) = tmp_path.rglob("*.png")
    assert file.parent == tmp_path / "logs/run/version_0"
    np.testing.assert_array_equal(shown, np.asarray(Image.open(file)))
    assert greys(file, columns=2) == [0, 1, 3, 5]


def test_wandb_keeps_the_very_picture(tmp_path, trainer_options, monkeypatch):
    wandb = pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    logger = WandbLogger(save_dir=tmp_path, project="p")
    run(trainer_options, DataLoader(range(5)), logger=[logger], shown=5, columns=5)
    wandb.finish()
    (kept,) = tmp_path.glob("wandb/offline-run-*/files/media/images/squares*.png")
    np.testing.assert_array_equal(
        np.asarray(Image.open(kept)), np.asarray(Image.open(tmp_path / "squares.png"))
    )
    assert greys(kept, columns=5) == [0, 1, 2, 3, 4]


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:Using `DistributedSampler` with the dataloaders:UserWarning")
def test_of_two_ranks_the_first_draws_and_none_waits(tmp_path, trainer_options):
    _, trainer = run(
        trainer_options | {"devices": 2, "strategy": "ddp_fork"},
        DataLoader(range(12), batch_size=2),
        calls=tmp_path,
        logger=CSVLogger(tmp_path / "logs"),
        shown=3,
    )
    assert [p.name for p in tmp_path.glob("rank*")] == ["rank0"]
    (file,) = tmp_path.rglob("*.png")
    assert file.parent == tmp_path / "logs/lightning_logs/version_0"
    assert greys(file, columns=3) == [0, 4, 8]  # batches of rank 0: (0, 2), (4, 6), (8, 10)
    assert float(trainer.callback_metrics["mean"]) == pytest.approx(5.5)


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_a_picture_that_all_ranks_give_is_kept_once(tmp_path, trainer_options):
    class Kept(pl.Callback):
        def on_test_end(self, trainer, module):
            picture = torch.full((3, 4, 4), 9 + module.global_rank, dtype=torch.uint8)
            for rank in (0, 1):  # one after the other
                if module.global_rank == rank:
                    keep_picture(trainer, "kept", picture)
                trainer.strategy.barrier()

    class Silent(pl.LightningModule):
        def test_step(self, batch, batch_idx):
            pass

    options = trainer_options | {"devices": 2, "strategy": "ddp_fork", "callbacks": [Kept()]}
    trainer = pl.Trainer(**options, use_distributed_sampler=False)
    trainer.test(Silent(), DataLoader(range(2)), verbose=False)
    assert (np.asarray(Image.open(tmp_path / "kept.png")) == 9).all()


# --- How it is made


def test_a_grid_is_filled_row_by_row_on_white():
    pictures = [torch.full((3, 5, 6), n, dtype=torch.uint8) for n in (10, 20, 30)]
    made = grid(pictures, columns=2)
    expected = torch.full((3, 4 + 9 * 2, 4 + 10 * 2), 255, dtype=torch.uint8)
    for n, (top, left) in zip((10, 20, 30), ((4, 4), (4, 14), (13, 4)), strict=True):
        expected[:, top : top + 5, left : left + 6] = n
    assert torch.equal(made, expected)
    assert torch.equal(grid(pictures[:1], columns=2), pictures[0])


@pytest.mark.parametrize(
    ("shape", "covered"),
    [((40, 80), (10, 20)), ((80, 40), (20, 10)), ((7, 7), (20, 20)), ((3, 200), (1, 20)),
     ((30, 31), (19, 20))],
)  # fmt: skip
def test_an_image_keeps_its_proportions(shape, covered):
    image = torch.zeros(3, *shape, dtype=torch.uint8)
    image[0], image[1, :, shape[1] // 2 :] = 100, 200
    made = fitted(image, 20)
    assert made.shape == (3, 20, 20)
    height, width = covered
    inside = made[:, :height, :width]
    assert (inside[0] == 100).all()
    assert (inside[1, :, : width // 4] == 0).all()
    assert (inside[1, :, -(width // 4) :] == 200).all()
    made[:, :height, :width] = 255
    assert (made == 255).all()


def test_an_image_of_the_right_size_stays_as_it_is():
    image = torch.randint(256, (3, 20, 13), dtype=torch.uint8)
    assert torch.equal(fitted(image, 20)[:, :, :13], image)


@pytest.mark.parametrize(("right", "channel"), [(True, 1), (False, 0), (None, None)])
def test_a_caption_stands_below_and_its_colour_tells_right_from_wrong(right, channel):
    image = torch.randint(256, (3, 9, 60), dtype=torch.uint8)
    made = captioned(image, "aeroplane", right=right)
    assert (made.dtype, made.shape) == (torch.uint8, (3, 9 + 14, 60))
    assert torch.equal(made[:, :9], image)
    ink = 255 - made[:, 9:].int()
    assert (ink.amax((1, 2)) > 70).all()  # letters, on white
    assert (ink == 0).all(0).sum() > 14 * 60 / 2
    least = ink.sum((1, 2))  # white loses least of the letters' own channel
    assert channel is None or least.argmin() == channel
    assert channel is not None or least.max() == least.min()
    assert not torch.equal(made, captioned(image, "bicycle", right=right))


def test_floats_become_pixels():
    image = torch.tensor([0.0, 0.2, 127.4 / 255, 127.6 / 255, 1.0]).expand(3, 2, 5)
    assert as_pixels(image)[0, 0].tolist() == [0, 51, 127, 128, 255]
    assert as_pixels(image.bfloat16()).dtype == torch.uint8
    pixels = torch.randint(256, (3, 2, 5), dtype=torch.uint8)
    assert torch.equal(as_pixels(pixels), pixels)


def test_a_trainer_goes_on_with_a_module_that_draws_nothing(tmp_path, trainer_options):
    """Lightning keeps a module's callbacks in the Trainer."""

    class Plain(pl.LightningModule):
        def test_step(self, batch, batch_idx):
            self.log("seen", batch.float().mean())

    _, trainer = run(trainer_options, DataLoader(range(3)))
    (tmp_path / "squares.png").unlink()
    (found,) = trainer.test(Plain(), DataLoader(range(3)), verbose=False)
    assert found == {"seen": 1.0}
    assert not list(tmp_path.glob("*.png"))


def test_pictures_of_several_sizes_have_places_of_the_largest():
    low, high = (torch.zeros(3, *size, dtype=torch.uint8) for size in ((4, 10), (7, 5)))
    expected = torch.full((3, 7 + 8, 2 * 14 + 4), 255, dtype=torch.uint8)
    expected[:, 4:8, 4:14], expected[:, 4:11, 18:23] = 0, 0
    assert torch.equal(grid([low, high], columns=2), expected)
