"""`goodtransfer invert`: which images, what it leaves behind, going on, and errors that teach."""

import json
import re
import urllib.error
import zlib

import numpy as np
import pytest
import torch
from PIL import Image

from goodtransfer.analysis import gallery
from goodtransfer.analysis.inversion import invert, seeded
from goodtransfer.analysis.inversion_figures import Panel, grid, scatter
from goodtransfer.cli import main
from goodtransfer.encoders import build
from goodtransfer.views import center, decode
from goodtransfer.weights import save_encoder

SETTINGS = ["--steps", "3", "--every", "2", "--size", "70", "--device", "cpu"]


def photo(path, seed=0, size=(90, 80)):
    corners = np.random.default_rng(seed).integers(0, 256, (3, 3, 3), dtype=np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(corners).resize(size, Image.Resampling.BICUBIC).save(path)
    return path


@pytest.fixture
def no_lpips(monkeypatch, tmp_path):
    def refuse(*_args, **_options):
        raise urllib.error.URLError("no network")

    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setattr(torch.hub, "download_url_to_file", refuse)


@pytest.fixture
def weights(tmp_path):
    with seeded(7):
        encoder = build("resnet10w8")
    return save_encoder(tmp_path / "moco.safetensors", encoder, method="MoCoV2", data="", seed=7)


def everything(folder):
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*.*")}


def results(out):
    return json.loads((out / "results.json").read_text())


@pytest.mark.usefixtures("no_lpips")
def test_what_it_leaves_behind(tmp_path, weights, capsys):
    a, b = photo(tmp_path / "a.png", 1), photo(tmp_path / "b.jpg", 2)
    out = tmp_path / "out"
    command = ["invert", "--encoders", str(weights), "plain=resnet10w8", "--images", str(a), str(b)]
    assert main([*command, "--out", str(out), "--seed", "5", *SETTINGS]) == 0
    pictures = {f"{label}/{name}.png" for label in ("original", "moco", "plain") for name in "ab"}
    steps = {f"{label}/{name}_steps/00002.png" for label in ("moco", "plain") for name in "ab"}
    assert set(everything(out)) == pictures | steps | {"results.json", "table.md", "figure2.png"}

    found = results(out)
    assert found["settings"] == {"stage": 5, "steps": 3, "lr": 1e-3, "size": 70, "seed": 5}
    assert found["encoders"] == {"moco": str(weights), "plain": "resnet10w8"}
    assert found["files"] == {"a": str(a), "b": str(b)}
    seeds = {name: zlib.crc32(f"5/{name}".encode()) for name in "ab"}
    assert found["images"] == [{"image": name, "seed": seeds[name]} for name in "ab"]
    assert found["fidelity"] == (
        "steps 3 instead of 3001; size 70 instead of 224; images 2 instead of 1000; pictures saved "
        "without loss instead of as JPEG"
    )
    entries = found["inversions"]
    made = [(entry["image"], entry["encoder"]) for entry in entries]
    assert made == [("a", "moco"), ("a", "plain"), ("b", "moco"), ("b", "plain")]

    # By the function alone, from the image's own seed, and the very bytes of the picture.
    original = center(70)(decode(b))[0]
    alone = invert(str(weights), original, steps=3, seed=seeds["b"], device="cpu")
    picture = torch.from_numpy(decode(out / "moco" / "b.png")).permute(2, 0, 1)
    assert torch.equal(picture, alone.picture)
    assert entries[2]["loss"] == float(alone.losses[-1])
    assert np.array_equal(decode(out / "original" / "b.png"), original.permute(1, 2, 0))
    error = ((picture / 255 - original / 255) ** 2).mean()
    assert entries[2]["psnr"] == pytest.approx(float(-10 * error.log10()), rel=1e-4)

    printed = capsys.readouterr().out
    assert printed.endswith(f"{(out / 'table.md').read_text()}\n{out / 'figure2.png'}\n")
    row = next(line for line in printed.splitlines() if line.startswith("| moco "))
    ssim, psnr = (np.mean([entries[i][name] for i in (0, 2)]) for name in ("ssim", "psnr"))
    assert row.startswith(f"| moco | 2 | – | – | {psnr:.1f} | {ssim:.3f} | ")
    assert "LPIPS is not measured. Expected torchvision's SqueezeNet 1.1 weights" in printed
    assert "no network" in printed

    # The grid shows the pictures as they are, the original first.
    with Image.open(out / "figure2.png") as image:
        pixels = np.asarray(image)
    for column, label in enumerate(("original", "moco", "plain")):
        left = 6 + column * 76
        panel = pixels[26 + 94 : 26 + 94 + 70, left : left + 70]
        assert np.array_equal(panel, decode(out / label / "b.png"))


@pytest.mark.usefixtures("no_lpips")
def test_the_same_command_goes_on(tmp_path, weights, monkeypatch, capsys):
    photos = tmp_path / "photos"
    for number in range(2):
        photo(photos / f"{number}.png", number)
    whole, out = tmp_path / "whole", tmp_path / "out"
    command = ["invert", "--encoders", f"moco={weights}", "--images", str(photos), *SETTINGS]
    assert main([*command, "--out", str(whole)]) == 0

    real, calls, stops = gallery.invert, [], [True]

    def stopping(*args, watch, **options):
        def stop(search):
            watch(search)
            calls.append(len(search.losses))
            if calls == [1, 2, 3, 1, 2, 3] and stops.pop():  # the last step of the second image
                raise KeyboardInterrupt

        return real(*args, watch=stop, **options)

    monkeypatch.setattr(gallery, "invert", stopping)
    assert main([*command, "--out", str(out)]) == 130
    assert "the same command goes on" in capsys.readouterr().err
    assert (out / "moco" / "1.partial").exists()
    assert main([*command, "--out", str(out)]) == 0
    assert calls == [1, 2, 3, 1, 2, 3, 3]
    assert everything(out) == everything(whole)

    before = everything(out)
    assert main([*command, "--out", str(out)]) == 0  # nothing is left to do
    assert calls[7:] == []
    assert everything(out) == before
    # What another setting, other weights or another photo gives is made anew.
    (out / "moco" / "1_steps" / "00004.png").write_bytes(b"of a longer search")
    assert main([*command, "--out", str(out), "--lr", "0.01"]) == 0
    assert calls[7:] == [1, 2, 3] * 2
    assert [p.name for p in (out / "moco" / "1_steps").iterdir()] == ["00002.png"]
    assert main([*command, "--out", str(out)]) == 0
    photo(photos / "1.png", 9)
    assert main([*command, "--out", str(out)]) == 0
    assert calls[7:] == [1, 2, 3] * 5
    save_encoder(weights, build("resnet10w8"), method="MoCoV2", data="", seed=7)
    assert main([*command, "--out", str(out)]) == 0
    assert calls[7:] == [1, 2, 3] * 7


@pytest.mark.usefixtures("no_lpips")
def test_images_of_every_class_are_drawn_by_the_seed(tmp_path):
    root = tmp_path / "val"
    for name in ("cat", "dog"):
        for number in range(4):
            photo(root / name / f"{number}.png", number)

    def drawn(*words):
        out = tmp_path / "".join(words)
        command = ["invert", "--encoders", "resnet10w8", "--images", str(root), "--out", str(out)]
        assert main([*command, "--size", "70", "--steps", "1", *words]) == 0
        return [entry["image"] for entry in results(out)["images"]]

    one = drawn("--images-per-class", "1")
    assert [name[:4] for name in one] == ["cat/", "dog/"]
    three = drawn("--images-per-class", "3")
    assert [name[:4] for name in three] == ["cat/"] * 3 + ["dog/"] * 3
    assert len(set(three)) == 6
    others = [drawn("--images-per-class", "1", "--seed", str(seed)) for seed in (1, 2, 3)]
    assert any(other != one for other in others)


@pytest.mark.data
def test_distances_come_with_the_weights(tmp_path, weights, shared, monkeypatch, no_lpips, capsys):
    """Pictures made without them are measured later, and not made again."""
    photos = [str(photo(tmp_path / f"{name}.png", n)) for n, name in enumerate("xyz")]
    out = tmp_path / "out"
    command = ["invert", "--encoders", f"A={weights}", "B=resnet10w8", "--images", *photos]
    command += ["--out", str(out), *SETTINGS]
    assert main(command) == 0
    assert "lpips" not in results(out)["inversions"][0]
    capsys.readouterr()
    monkeypatch.setenv("TORCH_HOME", str(shared / "weights" / "torch_home"))
    monkeypatch.setattr(gallery, "invert", None)
    assert main(command) == 0
    entries = results(out)["inversions"]
    both = {
        label: [e["lpips_uncalibrated"] for e in entries if e["encoder"] == label] for label in "AB"
    }
    measured = gallery.LPIPS()(
        *(
            torch.stack([gallery.read(out / f / f"{n}.png") for n in "xyz"])
            for f in ("A", "original")
        )
    )
    assert both["A"] == pytest.approx(measured.uncalibrated.tolist(), rel=1e-4)
    assert [e["lpips"] for e in entries[::2]] == pytest.approx(
        measured.calibrated.tolist(), rel=1e-4
    )
    wins = sum(a < b for a, b in zip(both["A"], both["B"], strict=True))
    printed = capsys.readouterr().out
    assert f"A is nearer than B on {100 * wins / 3:.0f} % of 3 images (95 % interval" in printed
    assert "not measured" not in printed
    with Image.open(out / "figure6.png") as image:
        assert image.size == (630, 660)


# --- The figures


def test_a_grid_with_a_hole_and_long_names():
    red = torch.tensor([255, 0, 0], dtype=torch.uint8).view(3, 1, 1).expand(3, 20, 30)
    made = grid({"a name that is far too long": [Panel(red), Panel(red)], "b": [Panel(None)]})
    pixels = np.asarray(made)
    assert pixels.shape == (26 + 2 * 44, 6 + 2 * 36, 3)
    is_red = (pixels == [255, 0, 0]).all(2)
    assert is_red.sum() == 2 * 20 * 30
    assert is_red[26:46, 6:36].all()
    assert (pixels[26:, 42:] == 255).all()  # nothing in the empty column
    assert (pixels[:, 36:42] == 255).all()  # nor does a name run over


def test_the_scatter_has_a_point_for_each_image():
    a, b, c = [5.0, 6.0, 5.5], [6.0, 5.5, 5.5], [7.0, 7.0, 7.0]
    axes = scatter({"MoCo": a, "supervised": b, "none": c}).axes
    assert [ax.get_xlabel() for ax in axes] == [
        f"LPIPS uncalibrated, {n}" for n in ("supervised", "none")
    ]
    for ax, other in zip(axes, (b, c), strict=True):
        assert ax.get_ylabel() == "LPIPS uncalibrated, MoCo"
        points = ax.collections[0].get_offsets()
        assert np.array_equal(points, list(zip(other, a, strict=True)))
        assert ax.get_xlim() == ax.get_ylim()
    assert axes[0].get_title().startswith("MoCo is nearer on 50 % of 3 images (95 %")
    assert axes[1].get_title().startswith("MoCo is nearer on 100 % of 3")
    (long,) = scatter({f"{name}_pretrained_for_200_epochs-on-imagenet": a for name in "xy"}).axes
    words = (long.get_title(), long.get_xlabel(), long.get_ylabel())
    assert max(len(line) for text in words for line in text.splitlines()) <= 64
    assert all("\n" in text for text in words)


# --- What is told


def fails(capsys, *words):
    assert main(["invert", *words]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("goodtransfer: error: Expected")
    return error


def test_what_cannot_be_done_is_one_sentence(tmp_path, capsys, weights):
    good, out = str(photo(tmp_path / "in" / "a.png")), str(tmp_path / "out")
    tiny = str(photo(tmp_path / "tiny.png", size=(31, 200)))
    again = str(photo(tmp_path / "other" / "a.jpg"))
    (tmp_path / "empty").mkdir()
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no image")
    plain = ["--encoders", "resnet10w8", "--out", out, "--images"]

    assert f"an image at {broken}, but it cannot be decoded" in fails(capsys, *plain, str(broken))
    assert "an image at /none.png, but cannot read it" in fails(capsys, *plain, "/none.png")
    assert f"32 pixels a side at {tiny}, but it is 31 x 200" in fails(capsys, *plain, tiny)
    assert "images in" in fails(capsys, *plain, str(tmp_path / "empty"))
    assert f"{good} and {again} are both called a" in fails(capsys, *plain, good, again)
    assert "more than 64 pixels a side" in fails(capsys, *plain, good, "--size", "64")
    assert "stages of resnet10w8 among" in fails(capsys, *plain, good, "--stage", "7")
    assert "a device that torch can use" in fails(capsys, *plain, good, "--device", "abacus")
    few = fails(capsys, *plain, str(tmp_path), "--images-per-class", "2")
    assert re.search(r"2 images of every class in .*, but empty has 0", few)
    twice = ["--out", out, "--images", good, "--encoders", "resnet10w8", "resnet10w8"]
    assert "'resnet10w8' twice" in fails(capsys, *twice)
    assert "name it, as in other=resnet18" in fails(capsys, *twice[:-2], "original=resnet18")
    assert "but got '..=resnet18'" in fails(capsys, *twice[:-2], "..=resnet18")
    assert "a --seed from 0 to" in fails(capsys, *plain, good, "--seed", "-1")
    assert "an encoder name" in fails(capsys, *twice[:-2], "resnet51")
    assert not (tmp_path / "out").exists()
    plain[3] = good  # a file for --out
    assert f"cannot read {good}/results.json" in fails(capsys, *plain, good, "--size", "70")
    (tmp_path / "out").mkdir()
    other = tmp_path / "out" / "results.json"
    other.write_text('{"of": "something else"}')
    plain[3] = out
    assert f"cannot read {other}" in fails(capsys, *plain, good, "--size", "70")
    assert everything(tmp_path / "out") == {"results.json": b'{"of": "something else"}'}


def test_a_dead_encoder_is_refused_before_the_others_start(tmp_path, capsys):
    encoder = build("resnet10w8")
    for parameter in encoder.parameters():
        parameter.data.zero_()
    dead = save_encoder(tmp_path / "dead.safetensors", encoder, method="", data="", seed=0)
    words = ["--encoders", "resnet10w8", f"moco={dead}", "--images", str(photo(tmp_path / "a.png"))]
    error = fails(capsys, *words, "--size", "70", "--out", str(tmp_path / "out"))
    assert "stage 5 of resnet10w8 is 0 everywhere: check its weights" in error
    assert error.endswith(f"(With moco={dead}.)")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("option", ["--steps", "--size", "--lr", "--every", "--images-per-class"])
def test_numbers_are_positive(option, capsys):
    with pytest.raises(SystemExit, match="2"):
        main(["invert", "--encoders", "x", "--images", "y", "--out", "z", option, "0"])
    assert "expected more than 0, but got 0" in capsys.readouterr().err


def test_help_teaches(capsys):
    with pytest.raises(SystemExit, match="0"):
        main(["invert", "--help"])
    printed = capsys.readouterr().out
    assert "goodtransfer invert --encoders" in printed
    assert "figure2.png" in printed
    assert "(default: 3001)" in printed
