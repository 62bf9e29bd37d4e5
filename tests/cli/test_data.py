"""`goodtransfer data`: exit codes, tables, pictures, and errors that teach."""

import numpy as np
import pytest
from PIL import Image

from goodtransfer.cli import main
from goodtransfer.cli.data import DATASETS


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    root = tmp_path_factory.mktemp("cli") / "toy"
    assert main(["data", "make-toy", str(root), "--images", "400", "--size", "128"]) == 0
    return root


FOLDERS = {
    "imagefolder": ["imagenet", "imagefolder", "unlabelled"],
    "places": ["places"],
    "celeba": ["celeba"],
    "coco": ["coco", "coco-images"],
    "synthia": ["synthia"],
    "cityscapes": ["cityscapes"],
    "voc": ["voc"],
    "mini_imagenet": ["mini-imagenet"],
}
PAIRS = [(folder, name) for folder, names in FOLDERS.items() for name in names]


def test_make_toy_names_its_folders(world, capsys):
    arguments = ["data", "make-toy", str(world), "--images", "400", "--size", "128"]
    assert main(arguments) == 0  # there already
    assert capsys.readouterr().out.split() == [str(world / folder) for folder in FOLDERS]


@pytest.mark.parametrize(("folder", "name"), PAIRS)
def test_a_sound_folder_passes(world, capsys, folder, name):
    command = ["data", "check", str(world / folder), "--dataset", name, "--workers", "0"]
    assert main(command) == 0
    printed = capsys.readouterr().out.splitlines()
    assert printed[0].split() == ["found", "published"]
    assert any(line.split() == ["faults", "0"] for line in printed)
    assert printed[-1].startswith("no damage")


def test_incomplete_is_damage_on_demand(world, capsys):
    command = ["data", "check", str(world / "places"), "--dataset", "places", "--workers", "0"]
    assert main([*command, "--complete"]) == 1
    assert capsys.readouterr().out.splitlines()[-1] == "damaged"


def test_damage_ends_in_1(world, tmp_path, capsys):
    for split in ("train", "val"):
        for name in ("a", "b"):
            path = tmp_path / split / name / "1.png"
            path.parent.mkdir(parents=True)
            Image.new("RGB", (40, 40)).save(path)
    command = ["data", "check", str(tmp_path), "--dataset", "imagefolder", "--workers", "0"]
    assert main(command) == 0
    path.write_bytes(b"")
    assert main(command) == 1
    printed = capsys.readouterr().out
    assert f"fault: Expected an image at {path}, but it cannot be decoded (it is empty)" in printed
    assert printed.endswith("damaged\n")


def test_splits_may_have_other_names(tmp_path, capsys):
    for split in ("seg_train", "seg_test"):
        path = tmp_path / split / "sea" / "1.png"
        path.parent.mkdir(parents=True)
        Image.new("RGB", (40, 40)).save(path)
    command = ["data", "check", str(tmp_path), "--dataset", "imagefolder", "--workers", "0"]
    assert main(command) == 1
    assert main([*command, "--train", "seg_train", "--test", "seg_test"]) == 0
    assert main(["data", "check", str(tmp_path), "--dataset", "places", "--train", "x"]) == 2
    assert "no --train or --test for PlacesDataModule" in capsys.readouterr().err


def test_synthia_in_either_layout(world, tmp_path, capsys):
    command = ["data", "check", str(world / "synthia"), "--dataset", "synthia", "--workers", "0"]
    assert (
        main([*command, "--train", "SYNTHIA-SEQS-01-SPRING", "--test", "SYNTHIA-SEQS-02-SUMMER"])
        == 0
    )
    printed = capsys.readouterr().out
    assert "images of train" in printed
    assert "images of val" in printed
    assert main([*command, "--train", "RAND_CITYSCAPES"]) == 0
    (tmp_path / "RAND_CITYSCAPES").symlink_to(world / "synthia" / "RAND_CITYSCAPES")
    command[2] = str(tmp_path)
    assert main(command) == 0
    assert "classes" in capsys.readouterr().out


def test_one_folder_to_train_on(tmp_path, capsys):
    command = ["data", "check", str(tmp_path), "--dataset", "unlabelled", "--train", "a", "b"]
    assert main(command) == 2
    assert "one folder after --train, but got a b" in capsys.readouterr().err


def test_the_limit_of_pixels(tmp_path):
    path = tmp_path / "x" / "1.png"
    path.parent.mkdir()
    Image.new("RGB", (40, 40)).save(path)
    command = ["data", "check", str(tmp_path), "--dataset", "unlabelled", "--workers", "0"]
    assert main([*command, "--max-pixels", "1600"]) == 0
    assert main([*command, "--max-pixels", "1599"]) == 1


def test_show_writes_a_picture(world, tmp_path, capsys):
    out = tmp_path / "below" / "grid.png"
    roots = [str(world / folder) for folder in ("coco", "celeba", "synthia")]
    command = ["data", "show", *roots, "--dataset", "coco", "mafl", "synthia", "--out", str(out)]
    assert main([*command, "--width", "600"]) == 0
    assert capsys.readouterr().out == f"{out}\n"
    with Image.open(out) as image:
        assert image.size == (600, 3 * (192 + 16 + 4) + 4)
        assert len(np.unique(np.asarray(image))) > 50


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["check", "/no/such/folder", "--dataset", "voc"], "Expected a folder at /no/such/folder"),
        (["show", "/", "/tmp", "/", "--dataset", "voc", "coco"], "one for each of the 3 folders"),
    ],
)
def test_what_cannot_be_done_is_one_sentence(capsys, words, message):
    assert main(["data", *words]) == 2
    error = capsys.readouterr().err
    assert error.startswith("goodtransfer: error: Expected")
    assert message in error
    assert error.count("\n") == 1


def test_help_names_every_data_set(capsys):
    with pytest.raises(SystemExit):
        main(["data", "--help"])
    printed = capsys.readouterr().out
    assert all(f"\n  {name}" in printed for name in DATASETS)
