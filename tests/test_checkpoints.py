"""Checkpoints that are whole or not there, on real file systems that run full or vanish."""

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
import pytorch_lightning as pl
import torch
import torch.nn.functional as F
from pytorch_lightning.demos.boring_classes import BoringModel

from goodtransfer import checkpoints
from goodtransfer.checkpoints import SafeCheckpointIO, damage, newest_whole, sweep
from goodtransfer.momentum import KeyQueue


def content(size=1000, seed=0):
    values = torch.rand(size, generator=torch.Generator().manual_seed(seed))
    return {"state_dict": {"weight": values}, "step": seed}


def test_what_is_saved_is_read(tmp_path):
    io, path = SafeCheckpointIO(), tmp_path / "new" / "last.ckpt"
    for seed in (1, 2, 3):
        io.save_checkpoint(content(seed=seed), path)
        found = io.load_checkpoint(path)
        assert torch.equal(
            found["state_dict"]["weight"], content(seed=seed)["state_dict"]["weight"]
        )
    assert sorted(f.name for f in path.parent.iterdir()) == ["last.ckpt", "last.ckpt.before"]
    assert torch.load(tmp_path / "new" / "last.ckpt.before")["step"] == 2
    io.remove_checkpoint(path)
    assert not any(path.parent.iterdir())


@pytest.mark.parametrize("cut", [0, 1, 100, 3000, -1])
def test_a_truncated_newest_gives_way_to_the_one_before_saying_so(cut, tmp_path):
    io, path = SafeCheckpointIO(), tmp_path / "last.ckpt"
    for seed in (1, 2):
        io.save_checkpoint(content(seed=seed), path)
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.warns(
        UserWarning, match=r"last\.ckpt is damaged .* the one before, last.ckpt.before"
    ):
        assert io.load_checkpoint(path)["step"] == 1


def test_a_damaged_newest_never_takes_the_place_of_the_good_one_before(tmp_path, monkeypatch):
    """Killed between both renames of the next save, as that of the file itself never comes here."""
    io, path = SafeCheckpointIO(), tmp_path / "last.ckpt"
    for seed in (1, 2):
        io.save_checkpoint(content(seed=seed), path)
    path.write_bytes(path.read_bytes()[:100])
    replace = os.replace

    def killed(source, target):
        if target == path:
            raise KeyboardInterrupt
        replace(source, target)

    monkeypatch.setattr(os, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        io.save_checkpoint(content(seed=3), path)
    with pytest.warns(UserWarning, match="going on from the one before"):
        assert io.load_checkpoint(path)["step"] == 1


def test_a_flipped_bit_is_found_and_what_is_older_is_taken(tmp_path):
    io, path = SafeCheckpointIO(before=False), tmp_path / "epoch=2.ckpt"
    io.save_checkpoint(content(seed=1), tmp_path / "epoch=1.ckpt")
    time.sleep(0.01)
    io.save_checkpoint(content(seed=2), path)
    time.sleep(0.01)
    io.save_checkpoint(content(seed=3), tmp_path / "epoch=3.ckpt")
    stat, written = path.stat(), bytearray(path.read_bytes())
    place = written.index(content(seed=2)["state_dict"]["weight"].numpy().tobytes()[:64])
    written[place + 40] ^= 1
    path.write_bytes(written)
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert torch.load(path)["step"] == 2  # torch alone does not see it
    with pytest.warns(UserWarning, match="is not what was written"):
        assert io.load_checkpoint(path)["step"] == 1  # and not the newer one


@pytest.mark.parametrize("resumed", [False, True])
def test_of_a_name_an_epoch_the_one_before_stays_when_lightning_removes_it(resumed, tmp_path):
    """As ModelCheckpoint does by default: save the new one, then remove the old one."""
    io, files = SafeCheckpointIO(), [tmp_path / f"epoch={n}-step={9 * n}.ckpt" for n in range(4)]
    for seed, path in enumerate(files):
        if resumed and seed == 2:
            io = SafeCheckpointIO()
            io.load_checkpoint(files[1])
        io.save_checkpoint(content(seed=seed), path)
        if seed:
            io.remove_checkpoint(files[seed - 1])
        names = [path.name, f"{path.name}.before"][: 1 + (seed > 0)]
        assert sorted(f.name for f in tmp_path.iterdir()) == names
    path.write_bytes(path.read_bytes()[:100])
    with pytest.warns(
        UserWarning, match=r"going on from the one before, epoch=3-step=27.ckpt.befo"
    ):
        assert io.load_checkpoint(path)["step"] == 2
    # What is damaged takes nobody's place.
    io.save_checkpoint(content(seed=4), tmp_path / "epoch=4-step=36.ckpt")
    io.remove_checkpoint(path)
    (tmp_path / "epoch=4-step=36.ckpt").write_bytes(b"PK")
    with pytest.warns(UserWarning, match="going on from the one before"):
        assert io.load_checkpoint(tmp_path / "epoch=4-step=36.ckpt")["step"] == 2


def test_a_trainer_s_own_checkpoint_gives_way_to_the_one_before(tmp_path, trainer_options):
    """With Lightning's defaults, which keep one file, of another name each epoch."""
    options = trainer_options | {"enable_checkpointing": True}

    def fit(epochs, path=None):
        trainer = pl.Trainer(max_epochs=epochs, plugins=[SafeCheckpointIO()], **options)
        trainer.fit(BoringModel(), ckpt_path=path, weights_only=True)
        return trainer

    trainer = fit(3)
    newest = Path(trainer.checkpoint_callback.best_model_path)
    assert sorted(f.name for f in newest.parent.iterdir()) == [newest.name, f"{newest.name}.before"]
    newest.write_bytes(newest.read_bytes()[:-1000])
    with pytest.warns(UserWarning, match=r"is damaged .* going on from the one before"):
        again = fit(4, newest)
    assert (again.current_epoch, again.global_step) == (4, 4 * 64)


def test_another_run_s_checkpoint_is_never_taken_for_the_one_before(tmp_path):
    io = SafeCheckpointIO()
    for seed, name in enumerate(["exemplar", "exemplar", "moco", "exemplar"]):
        io.save_checkpoint(content(seed=seed), tmp_path / f"{name}.ckpt")
        time.sleep(0.01)
    path = tmp_path / "exemplar.ckpt"
    path.write_bytes(b"PK")
    with pytest.warns(UserWarning, match="going on from the one before, exemplar.ckpt.before"):
        assert io.load_checkpoint(path)["step"] == 1
    (tmp_path / "exemplar.ckpt.before").unlink()
    with pytest.raises(ValueError, match="go on from one of moco.ckpt, if it is of this run"):
        io.load_checkpoint(path)


def test_none_that_is_whole_is_a_sentence(tmp_path):
    path = tmp_path / "last.ckpt"
    with pytest.raises(FileNotFoundError, match="Expected a checkpoint at"):
        newest_whole(path)
    path.write_bytes(b"PK")
    with pytest.raises(ValueError, match="no other in its folder is whole"):
        newest_whole(path)


def test_what_killed_runs_were_writing_is_swept_and_nothing_else(tmp_path):
    here = checkpoints._host()
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    dead, own = (tmp_path / f".a.ckpt.{here}.{pid}.tmp" for pid in (gone.pid, os.getpid()))
    elsewhere, other = tmp_path / f".a.ckpt.elsewhere.{gone.pid}.tmp", tmp_path / ".notes.tmp"
    old = tmp_path / f".b.ckpt.elsewhere.{gone.pid}.tmp"
    for file in (dead, own, elsewhere, other, old):
        file.touch()
    os.utime(old, (time.time() - 4000,) * 2)
    assert sorted(sweep(tmp_path)) == sorted([dead, old])
    assert sorted(tmp_path.iterdir()) == sorted([own, elsewhere, other])
    dead.touch()
    SafeCheckpointIO().save_checkpoint(content(), tmp_path / "b.ckpt")
    assert not dead.exists()


# --- Disks


@pytest.fixture
def disk(tmp_path):
    """A file system of 1 MiB, by root's mount, as CI and containers have it."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = shutil.which("mount")
    made = mount and subprocess.run(
        [mount, "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)], capture_output=True
    )
    if not made or made.returncode:
        pytest.skip("needs root's right to mount a tmpfs")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], capture_output=True)


def test_a_full_disk_leaves_the_last_good_one(disk):
    io, path = SafeCheckpointIO(), disk / "last.ckpt"
    io.save_checkpoint(content(50_000, seed=1), path)
    with pytest.raises(
        OSError, match=r"No space left on device. Of its folder the last good one is"
    ):
        io.save_checkpoint(content(400_000, seed=2), path)
    assert [f.name for f in disk.iterdir()] == ["last.ckpt"]
    assert io.load_checkpoint(path)["step"] == 1
    io.save_checkpoint(content(50_000, seed=3), path)
    assert io.load_checkpoint(path)["step"] == 3


def test_a_folder_that_turns_read_only_leaves_the_last_good_one(disk):
    io, path = SafeCheckpointIO(), disk / "last.ckpt"
    io.save_checkpoint(content(seed=1), path)
    orphan = (
        disk / f".last.ckpt.{checkpoints._host()}.{2**22 + 1}.tmp"
    )  # no process has that number
    orphan.touch()
    subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
    with pytest.raises(OSError, match="Read-only file system. Of its folder the last good one is"):
        io.save_checkpoint(content(seed=2), path)
    assert io.load_checkpoint(path)["step"] == 1  # though what a killed run was writing has to stay
    assert orphan.exists()


def test_a_mount_that_vanishes_while_it_is_saved_to_is_a_sentence(disk, tmp_path, monkeypatch):
    """The disk is mounted a second time, and that mount vanishes in the middle of writing."""
    share = tmp_path / "share"
    share.mkdir()
    subprocess.run(["mount", "--bind", str(disk), str(share)], check=True)
    io, path, write = SafeCheckpointIO(), share / "last.ckpt", torch.save
    io.save_checkpoint(content(seed=1), path)

    def vanish(checkpoint, file):
        file.write(b"PK")
        subprocess.run(["umount", "-l", str(share)], check=True)
        file.seek(0)
        write(checkpoint, file)

    monkeypatch.setattr(torch, "save", vanish)
    with pytest.raises(OSError, match=r"Expected to save .* but could not: .*none before it"):
        io.save_checkpoint(content(seed=2), path)
    monkeypatch.undo()
    assert not any(share.iterdir())
    # What is on the disk is the last good one, and beside it what was being written.
    assert damage(disk / "last.ckpt") is None
    assert SafeCheckpointIO().load_checkpoint(disk / "last.ckpt")["step"] == 1


# --- Thinner ones


def filled(size=64, dim=16):
    queue = KeyQueue(size, dim)
    keys = F.normalize(
        torch.randn(size + 5, dim, generator=torch.Generator().manual_seed(1)), dim=1
    )
    queue.enqueue(keys, torch.arange(size + 5), torch.arange(size + 5))
    return queue


def saved(io, queue, path):
    state = {f"queue.{name}": value for name, value in queue.state_dict().items()}
    io.save_checkpoint({"state_dict": state}, path)
    found = io.load_checkpoint(path)["state_dict"]
    return {name.removeprefix("queue."): value for name, value in found.items()}


def test_rounded_keys_come_back_rounded(tmp_path):
    queue, again = filled(), KeyQueue(64, 16)
    again.load_state_dict(saved(SafeCheckpointIO(queue="bf16"), queue, tmp_path / "a.ckpt"))
    assert again.keys.dtype == torch.float32
    assert torch.equal(again.keys, queue.keys.bfloat16().float())
    assert not torch.equal(again.keys, queue.keys)
    for name in ("labels", "indices", "pointer", "filled"):
        assert torch.equal(getattr(again, name), getattr(queue, name))


def test_without_its_queue_a_run_starts_with_an_empty_one_and_says_so(tmp_path):
    queue, again = filled(), filled()
    state = saved(SafeCheckpointIO(queue="none"), queue, tmp_path / "a.ckpt")
    with pytest.warns(
        UserWarning, match="saved without its queue, which starts empty: negatives are 64"
    ):
        again.load_state_dict(state)
    fresh = KeyQueue(64, 16).state_dict()
    assert all(torch.equal(value, fresh[name]) for name, value in again.state_dict().items())
    assert (queue.filled, len(queue.keys)) == (64, 64)  # what trains on is untouched


def test_thinner_files_are_smaller(tmp_path):
    queue, sizes = filled(4096, 64), {}
    for kind in ("whole", "bf16", "none"):
        saved(SafeCheckpointIO(queue=kind), queue, tmp_path / f"{kind}.ckpt")
        sizes[kind] = (tmp_path / f"{kind}.ckpt").stat().st_size
    keys = 4096 * 64 * 4
    assert sizes["whole"] - sizes["bf16"] == pytest.approx(keys / 2, rel=0.01)
    assert sizes["none"] < 0.01 * keys


def test_another_word_is_refused():
    with pytest.raises(ValueError, match="'whole', 'bf16' or 'none', but got 'half'"):
        SafeCheckpointIO(queue="half")
