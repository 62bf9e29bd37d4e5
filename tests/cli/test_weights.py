"""`goodtransfer weights`: what is printed, what is written, exit codes."""

import numpy as np
import pytest
import torch
import torchvision

from goodtransfer import load_encoder, save_encoder
from goodtransfer.cli import main
from goodtransfer.encoders import build
from goodtransfer.weights import read_provenance


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Ours with provenance, torchvision's with a classifier, official MoCo's, and a deep stem."""
    folder = tmp_path_factory.mktemp("files")
    torch.manual_seed(0)
    encoder = build("resnet10w8")
    save_encoder(folder / "ours.safetensors", encoder, method="MoCoV2", seed=1)
    torch.save(torchvision.models.resnet18(num_classes=5).state_dict(), folder / "tv.pth")
    moco = {f"module.encoder_q.{name}": value for name, value in encoder.state_dict().items()}
    moco |= {"module.encoder_q.fc.weight": torch.rand(4, 4), "module.queue": torch.rand(4, 8)}
    torch.save({"state_dict": moco, "arch": "resnet10"}, folder / "moco.pth.tar")
    deep = torchvision.models.resnet18().state_dict()
    deep["conv1.0.weight"] = deep.pop("conv1.weight")
    torch.save(deep, folder / "deep.pth")
    return folder


def test_inspect(files, capsys):
    assert main(["weights", "inspect", str(files / "ours.safetensors")]) == 0
    assert capsys.readouterr().out.splitlines() == [
        str(files / "ours.safetensors"),
        "  dialect       goodtransfer",
        "  architecture  resnet10w8",
        "  stem          7x7",
        "  input         RGB in [0, 1], mean 0.485, 0.456, 0.406, std 0.229, 0.224, 0.225",
        "  provenance    goodtransfer, method MoCoV2, seed 1",
        "  tensors       72 of 72 matched, 0 missing, 0 unexpected, 0 left aside",
        "  dtype         float32",
        "  parameters    78,312",
    ]
    assert main(["weights", "inspect", str(files / "moco.pth.tar"), str(files / "tv.pth")]) == 0
    printed = capsys.readouterr().out
    assert "  dialect       official MoCo, below module.encoder_q.\n" in printed
    assert "72 of 72 matched, 0 missing, 0 unexpected, 2 left aside" in printed
    assert "  dialect       torchvision or timm, with a classifier\n" in printed


def test_inspect_goes_on_after_a_bad_file(files, tmp_path, capsys):
    missing, deep, good = tmp_path / "none.pth", files / "deep.pth", files / "tv.pth"
    assert main(["weights", "inspect", str(missing), str(deep), str(good)]) == 2
    printed = capsys.readouterr()
    assert printed.err == (
        f"goodtransfer: error: Expected a weight file, but there is none at {missing}.\n"
    )
    assert "  stem          3x3, deep\n" in printed.out
    assert "  refused       Expected a 7x7 stem in " in printed.out
    assert "  architecture  resnet18\n" in printed.out


@pytest.mark.parametrize(
    ("to", "file"), [("safetensors", "e.safetensors"), ("torchvision", "e.pth"), ("timm", "e.bin"),
                     ("smp", "e.pt"), ("detectron2", "e.pkl")],
)  # fmt: skip
def test_convert(to, file, files, tmp_path, capsys):
    source, out = files / "tv.pth", tmp_path / "new" / file
    assert main(["weights", "convert", str(source), str(out), "--to", to]) == 0
    printed = capsys.readouterr().out.splitlines()
    assert printed[0] == str(out)
    expected = load_encoder(source).state_dict()
    found = load_encoder(out).state_dict()
    for name, value in expected.items():
        if not name.endswith("num_batches_tracked"):
            assert torch.equal(found[name], value)
    if to == "torchvision":  # the classifier goes along
        torchvision.models.resnet18(num_classes=5).load_state_dict(torch.load(out), strict=True)
    if to == "detectron2":
        assert printed[1:] == [
            "MODEL.RESNETS.STRIDE_IN_1X1 False",
            "INPUT.FORMAT RGB",
            "MODEL.PIXEL_MEAN [123.675, 116.28, 103.53]",
            "MODEL.PIXEL_STD [58.395, 57.12, 57.375]",
        ]


def test_convert_keeps_the_origin_of_a_path_with_an_at(files, tmp_path):
    (tmp_path / "a@b").mkdir()
    source = tmp_path / "a@b" / "ours.safetensors"
    source.write_bytes((files / "ours.safetensors").read_bytes())
    for number, word in enumerate((str(source), f"resnet10w8@{source}")):
        out = tmp_path / f"{number}.safetensors"
        assert main(["weights", "convert", word, str(out)]) == 0
        assert read_provenance(out).origin == {"method": "MoCoV2", "seed": 1}


def test_convert_leaves_out_a_head_that_its_library_does_not_have(tmp_path, capsys):
    encoder, mine = load_encoder("torchvision:densenet121"), tmp_path / "mine.safetensors"
    save_encoder(mine, encoder, head=torch.nn.Linear(encoder.channels[5], 3))
    call = ["weights", "convert", str(mine), str(tmp_path / "x.pth"), "--to", "torchvision"]
    assert main(call) == 2
    assert "write it without a head (`weights convert --no-head`)" in capsys.readouterr().err
    assert main([*call, "--no-head"]) == 0
    written = torch.load(tmp_path / "x.pth", weights_only=True)
    assert written.keys() == {
        name for name in torchvision.models.densenet121().state_dict() if "classifier" not in name
    }


def test_convert_refuses_in_a_sentence(files, tmp_path, capsys):
    deep, out = str(files / "deep.pth"), str(tmp_path / "e.safetensors")
    assert main(["weights", "convert", deep, out]) == 2
    assert "error: Expected a 7x7 stem in " in capsys.readouterr().err
    assert main(["weights", "convert", str(files / "tv.pth"), str(tmp_path / "e.pkl")]) == 2
    assert "Expected a file ending in .safetensors" in capsys.readouterr().err
    np.savez(tmp_path / "no.npz", a=np.zeros(2))
    assert main(["weights", "convert", str(tmp_path / "no.npz"), out]) == 2
    assert "error: Expected " in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == [tmp_path / "no.npz"]


def test_help_teaches(capsys):
    with pytest.raises(SystemExit):
        main(["weights", "convert", "--help"])
    assert "goodtransfer weights convert moco.safetensors R-50.pkl --to detectron2" in (
        capsys.readouterr().out
    )
