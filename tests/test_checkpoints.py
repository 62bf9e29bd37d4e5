"""Checkpoints that are whole or not there, on real file systems that run full or vanish."""

import os
import shutil
import subprocess
import sys
import time

import pytest
import torch
import torch.nn.functional as F

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
    for file in (dead, own, elsewhere, other):
        file.touch()
    assert sweep(tmp_path) == [dead]
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
    subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
    with pytest.raises(OSError, match="Read-only file system. Of its folder the last good one is"):
        io.save_checkpoint(content(seed=2), path)
    assert io.load_checkpoint.__self__ is io
    assert torch.load(path)["step"] == 1


def test_a_mount_that_vanishes_while_it_is_saved_to_is_a_sentence(disk, monkeypatch):
    io, path = SafeCheckpointIO(), disk / "last.ckpt"
    io.save_checkpoint(content(seed=1), path)
    shutil.copy(path, disk.parent / "copy.ckpt")  # what is on the disk, to look at it later

    def vanish(file):
        subprocess.run(["umount", "-l", str(disk)], check=True)
        return damage(file)

    monkeypatch.setattr(checkpoints, "damage", vanish)  # after it is written
    with pytest.raises(OSError, match=r"Expected to save .* but could not: .*none before it"):
        io.save_checkpoint(content(seed=2), path)
    assert not any(disk.iterdir())
    assert damage(disk.parent / "copy.ckpt") is None


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
