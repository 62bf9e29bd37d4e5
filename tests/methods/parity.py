"""What the parity tests of one and of two ranks share: the official runs' network and arrays."""

from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

import goodtransfer.methods.moco as moco_module
from goodtransfer.encoders import OwnTrunk
from goodtransfer.methods import MoCoV1, MoCoV2


class TinyTrunk(nn.Module):
    """The encoder of the parity cases, without its `fc`."""

    def __init__(self, batch_norm: bool) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 8, 3, stride=2, padding=1, bias=not batch_norm)
        self.bn1 = nn.BatchNorm2d(8) if batch_norm else nn.Identity()
        self.conv2 = nn.Conv2d(8, 16, 3, stride=2, padding=1, bias=not batch_norm)
        self.bn2 = nn.BatchNorm2d(16) if batch_norm else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.bn1(self.conv1(x)))
        return torch.relu(self.bn2(self.conv2(x)))


def named(trunk: nn.Module, head: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers under the official names: the head is `fc`."""
    return dict(trunk.state_dict()) | {
        f"fc.{name}": value for name, value in head.state_dict().items()
    }


def build(case: Path, run: dict, **arguments) -> moco_module.MoCo:
    """Our module in float64, holding the official run's initial weights and queue."""
    method = MoCoV2 if run["mlp"] else MoCoV1
    init = load_file(case / "inputs.safetensors")
    trunk = TinyTrunk(batch_norm=any("bn1" in name for name in init))
    module = method(
        OwnTrunk(trunk, normalization=None),
        queue_size=run["K"],
        dim=run["dim"],
        temperature=run["T"],
        momentum=run["m"],
        lr=run["lr"],
        weight_decay=run["weight_decay"],
        **arguments,
    ).double()
    with torch.no_grad():
        pairs = (("q", module.encoder, module.head), ("k", module.key_encoder, module.key_head))
        for side, encoder, head in pairs:
            for name, value in named(encoder.trunk, head).items():
                value.copy_(init[f"init.encoder_{side}.{name}"].reshape(value.shape))
        module.queue.keys.copy_(init["init.queue"].T)
    return module


class Recorder:
    """Runs in place of `info_nce_rows` and keeps the logits of each step."""

    def __init__(self, monkeypatch, module) -> None:
        self.logits: list[Tensor] = []
        self.keys: list[dict[str, Tensor]] = []
        real = moco_module.info_nce_rows

        def recording(q, p, keys, *, temperature, **labels):
            dense = torch.cat([(q * p).sum(1, keepdim=True), q @ keys.T], dim=1) / temperature
            self.logits.append(dense.detach().clone())
            trunk = getattr(module.key_encoder, "trunk", module.key_encoder)
            key = named(trunk, module.key_head)
            self.keys.append({name: value.clone() for name, value in key.items()})
            return real(q, p, keys, temperature=temperature, **labels)

        monkeypatch.setattr(moco_module, "info_nce_rows", recording)
