"""CelebADataModule: who is trained on, by plain Python on the real lists; trees; what it refuses."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from goodtransfer.data.celeba import CelebADataModule
from goodtransfer.data.toy_layouts import make_celeba

SIZE = 8
OPTIONS = {"size": SIZE, "batch_size": 4, "views": "center", "drop_last": False}
PARTITIONS = {"train": "0", "train+val": "01", "all": "012"}
LEFT_OUT = {"none": [], "test": ["testing"], "all": ["training", "testing"]}


def pairs(path):
    return dict(line.split() for line in path.read_text().splitlines())


def expected(root, partition, leave_out):
    """Class names, and (name, label) of train and val; read line by line from a flat tree."""
    identity, part = (
        pairs(root / f"{name}.txt") for name in ("identity_CelebA", "list_eval_partition")
    )
    out = set()
    for mafl in LEFT_OUT[leave_out]:
        out |= set((root / "MAFL" / f"{mafl}.txt").read_text().split())
    train = [n for n in sorted(part) if part[n] in PARTITIONS[partition] and n not in out]
    people = sorted({int(identity[name]) for name in train})
    label = {person: number for number, person in enumerate(people)}
    val = [n for n in sorted(part) if part[n] == "1"] if partition == "train" else []
    return (
        [str(person) for person in people],
        [(name, label[int(identity[name])]) for name in train],
        [(name, label.get(int(identity[name]), -1)) for name in val],
    )


def listing(data, part):
    return [(Path(path).name, label) for path, label in data.files(part)]


def check(data, root, partition="train", leave_out="none"):
    names, train, val = expected(root, partition, leave_out)
    assert data.class_names == names
    assert data.num_classes == len(names)
    assert listing(data, "train") == train
    if val:
        assert listing(data, "val") == val
    else:
        assert data.val_dataloader() == []


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    root = tmp_path_factory.mktemp("toy") / "celeba"
    return make_celeba(root, images=60, identities=20, size=32)


@pytest.mark.parametrize("partition", PARTITIONS)
@pytest.mark.parametrize("leave_out", LEFT_OUT)
def test_who_is_trained_on(toy, partition, leave_out):
    data = CelebADataModule(toy, partition=partition, leave_out_mafl=leave_out, **OPTIONS)
    check(data, toy, partition, leave_out)


def test_the_official_partition_is_the_default(toy):
    data = CelebADataModule(toy)
    assert (data.partition, data.leave_out_mafl) == ("train", "none")
    assert data.expected == {"train": 162_770, "val": 19_867, "classes": 8_192}


def test_no_image_of_mafl_is_trained_on(toy):
    lists = [(toy / "MAFL" / f"{part}.txt").read_text().split() for part in ("testing", "training")]
    assert all(lists)
    for leave_out, kept in (("test", lists[1]), ("all", [])):
        data = CelebADataModule(toy, partition="all", leave_out_mafl=leave_out)
        names = {name for name, _ in listing(data, "train")}
        assert not names & set(lists[0])
        assert names & set(lists[1]) == set(kept)


def test_the_folders_of_the_official_download(toy, tmp_path):
    for folder, names in {
        "Anno": ["identity_CelebA.txt"],
        "Eval": ["list_eval_partition.txt"],
        "Img": ["img_align_celeba"],
        ".": ["training.txt", "testing.txt"],
    }.items():
        (tmp_path / folder).mkdir(exist_ok=True)
        for name in names:
            source = toy / "MAFL" / name if folder == "." else toy / name
            (tmp_path / folder / name).symlink_to(source)
    data = CelebADataModule(tmp_path, leave_out_mafl="all")
    check(data, toy, "train", "all")
    assert data.files("train").root == tmp_path / "Img" / "img_align_celeba"


def test_batches_show_the_listed_faces(toy):
    data = CelebADataModule(toy, **OPTIONS)
    data.setup("fit")
    _, train, val = expected(toy, "train", "none")
    for loader, listed in ((data.train_dataloader(), train), (data.val_dataloader(), val)):
        seen = {}
        for batch in loader:
            for view, label, index in zip(batch.views[0], batch.label, batch.index, strict=True):
                name = listed[int(index)][0]
                seen[name] = int(label)
                with Image.open(toy / "img_align_celeba" / name) as image:
                    mean = np.asarray(image, dtype=float)[3:-3].mean()
                assert abs(float(view.float().mean()) - mean) < 12
        assert seen == dict(listed)


def write(root, identities, partition, mafl=None):
    """A tree of lists as given, with the images that either names."""
    (root / "img_align_celeba").mkdir()
    (root / "MAFL").mkdir()
    for name, lines in (("identity_CelebA", identities), ("list_eval_partition", partition)):
        (root / f"{name}.txt").write_text("".join(f"{line}\n" for line in lines))
    for part, names in (mafl or {}).items():
        (root / "MAFL" / f"{part}.txt").write_text("\n".join(names))
    for name in {line.split()[0] for line in identities + partition}:
        if name.endswith(".jpg") and "/" not in name:
            Image.new("RGB", (17, 21), (9, 9, 9)).save(root / "img_align_celeba" / name)
    return root


IDENTITIES = ["1.jpg 70", "2.jpg 9", "3.jpg 100", "4.jpg 9", "5.jpg 70", "6.jpg 8"]
PARTITION = ["6.jpg 2", "5.jpg 1", "4.jpg 1", "3.jpg 1", "2.jpg 0", "1.jpg 0"]


def test_labels_follow_the_identities_as_numbers(tmp_path):
    """9 comes before 70, lists may differ in order, and val knows the people of train alone."""
    data = CelebADataModule(write(tmp_path, IDENTITIES, PARTITION))
    assert data.class_names == ["9", "70"]
    assert listing(data, "train") == [("1.jpg", 1), ("2.jpg", 0)]
    assert listing(data, "val") == [("3.jpg", -1), ("4.jpg", 0), ("5.jpg", 1)]


def test_selection_where_there_is_no_val(tmp_path):
    data = CelebADataModule(
        write(tmp_path, IDENTITIES, PARTITION), partition="train+val", selection=0.5, **OPTIONS
    )
    assert data.class_names == ["9", "70", "100"]
    # One of each identity is selected, but not the only one of the third.
    assert sorted(label for _, label in listing(data, "train")) == [0, 1, 2]
    assert sorted(label for _, label in listing(data, "selection")) == [0, 1]
    (batch,) = data.val_dataloader()
    assert sorted(batch.label.tolist()) == [0, 1]


def lists(**changed):
    return {"identities": IDENTITIES, "partition": PARTITION} | changed


@pytest.mark.parametrize(
    ("changed", "message", "left"),
    [
        (
            lists(identities=["1.jpg", *IDENTITIES[1:]]),
            r"number from 1 to \d+ in line 1 of .*identity_CelebA.txt, but found '1.jpg'",
            ["2.jpg"],
        ),
        (
            lists(identities=["1.jpg 0", *IDENTITIES[1:]]),
            r"line 1 of .*identity_CelebA.txt, but found '1.jpg 0'",
            ["2.jpg"],
        ),
        (
            lists(partition=[*PARTITION[:4], "2.jpg 3", "1.jpg 0"]),
            r"number from 0 to 2 in line 5 of .*list_eval_partition.txt, but found '2.jpg 3'",
            ["1.jpg"],
        ),
        (
            lists(identities=[*IDENTITIES, "../7.jpg 4"]),
            r"below its folder .* line 7 of .*identity_CelebA.txt, but found '../7.jpg 4'",
            ["1.jpg", "2.jpg"],
        ),
        (
            lists(identities=[*IDENTITIES, "2.jpg 70"]),
            r"one line for each image in .*identity_CelebA.txt, but 2.jpg has more",
            ["1.jpg", "2.jpg"],
        ),
        (
            lists(identities=IDENTITIES[1:]),
            r"Expected 1.jpg in .*identity_CelebA.txt, because .*list_eval_partition.txt lists it",
            ["2.jpg"],
        ),
        (
            lists(partition=PARTITION[:-1]),
            r"Expected 1.jpg in .*list_eval_partition.txt, because .*identity_CelebA.txt lists it",
            ["2.jpg"],
        ),
        (
            lists(mafl={"testing": ["../5.jpg", "2.jpg"]}),
            r"Line 1: .*below the data set's folder in .*testing.txt, but found '../5.jpg'",
            ["1.jpg"],
        ),
    ],
)
def test_faults_of_the_lists(tmp_path, changed, message, left):
    root = write(tmp_path, **changed)
    leave_out = "test" if "mafl" in changed else "none"
    with pytest.raises(ValueError, match=message):
        CelebADataModule(root, leave_out_mafl=leave_out).setup("fit")
    data = CelebADataModule(root, leave_out_mafl=leave_out, on_error="skip")
    identity = dict(line.split() for line in IDENTITIES)
    named = [(name, data.class_names[label]) for name, label in listing(data, "train")]
    assert named == [(name, identity[name]) for name in left]
    assert len(set(data.skipped)) >= 1


def test_an_image_that_is_missing_takes_its_identity_along(tmp_path):
    lost = write(tmp_path, IDENTITIES, PARTITION) / "img_align_celeba" / "2.jpg"
    lost.unlink()
    with pytest.raises(
        FileNotFoundError, match=f"an image at {lost}, because .*partition.txt lists"
    ):
        CelebADataModule(tmp_path).setup("fit")
    data = CelebADataModule(tmp_path, on_error="skip")
    assert (data.class_names, listing(data, "train")) == (["70"], [("1.jpg", 0)])
    assert listing(data, "val") == [("3.jpg", -1), ("4.jpg", -1), ("5.jpg", 0)]
    assert len(data.skipped) == 1


@pytest.mark.parametrize(
    "lost", ["identity_CelebA.txt", "list_eval_partition.txt", "img_align_celeba", "MAFL"]
)
def test_a_missing_list_or_folder(tmp_path, lost):
    write(tmp_path, IDENTITIES, PARTITION)
    (tmp_path / lost).rename(tmp_path / "elsewhere")
    wanted = "MAFL/testing.txt or testing.txt" if lost == "MAFL" else lost
    with pytest.raises(
        FileNotFoundError, match=rf"(?s)Expected {wanted}.* in {tmp_path}, but .*ROOT/identity_C"
    ):
        CelebADataModule(tmp_path, leave_out_mafl="test").setup("fit")


@pytest.mark.parametrize("argument", [{"partition": "test"}, {"leave_out_mafl": True}])
def test_impossible_arguments(tmp_path, argument):
    with pytest.raises(ValueError, match=r"one of train, train\+val, all .* none, test, all, but"):
        CelebADataModule(tmp_path, **argument)


# --- The real lists, and real faces in CelebA's layout


@pytest.mark.data
def test_published_counts(shared):
    real = shared / "data" / "celeba_lists"
    for partition in PARTITIONS:
        for leave_out in LEFT_OUT:
            names, train, val = expected(real, partition, leave_out)
            counts = {"train": len(train), "classes": len(names)} | (
                {"val": len(val)} if val else {}
            )
            data = CelebADataModule(real, partition=partition, leave_out_mafl=leave_out)
            assert data.expected == counts


@pytest.mark.data
@pytest.mark.parametrize(("partition", "leave_out"), [("train", "test"), ("all", "all")])
def test_the_published_lists(shared, tmp_path, monkeypatch, partition, leave_out):
    """All but the images, which are not there."""
    real = shared / "data" / "celeba_lists"
    for path in real.iterdir():
        (tmp_path / path.name).symlink_to(path)
    (tmp_path / "img_align_celeba").mkdir()
    data = CelebADataModule(tmp_path, partition=partition, leave_out_mafl=leave_out)
    monkeypatch.setattr(data, "existing", lambda files, source: files)
    check(data, real, partition, leave_out)
    if partition == "train":  # the partitions share nobody
        assert (data.files("val").labels == -1).all()


@pytest.mark.data
def test_the_published_lists_without_images(shared, tmp_path):
    with pytest.raises(
        FileNotFoundError, match="Expected img_align_celeba or Img/img_align_celeba"
    ):
        CelebADataModule(shared / "data" / "celeba_lists").setup("fit")
    for path in (shared / "data" / "celeba_lists").iterdir():
        (tmp_path / path.name).symlink_to(path)
    (tmp_path / "img_align_celeba").mkdir()
    with pytest.raises(FileNotFoundError, match="image at .*img_align_celeba/000001.jpg, because"):
        CelebADataModule(tmp_path).setup("fit")


@pytest.mark.data
def test_real_faces(shared):
    root = shared / "data" / "celeba_layout_faces"
    for leave_out in LEFT_OUT:
        data = CelebADataModule(root, partition="all", leave_out_mafl=leave_out)
        if leave_out == "all":  # there, MAFL's lists hold every image
            with pytest.raises(ValueError, match="Expected images of 'train'"):
                data.setup("fit")
        else:
            check(data, root, "all", leave_out)
    data = CelebADataModule(root, **OPTIONS | {"views": "moco_v2"})
    data.setup("fit")
    check(data, root)
    assert (data.num_images, len(data.files("val"))) == (856, 113)
    batch = next(iter(data.train_dataloader()))
    assert [view.shape for view in batch.views] == [(4, 3, SIZE, SIZE)] * 2
    _, train, _ = expected(root, "train", "none")
    assert batch.label.tolist() == [train[i][1] for i in batch.index.tolist()]
