"""How others name the tensors of a ResNet, and what their networks want to see.

A dialect is one value: by which names it is known, how a name reads in torchvision, and the input
convention. Adding one is adding a line to ``DIALECTS``.
"""

import re
from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from typing import Any

from goodtransfer.encoders import IMAGENET, Normalization
from goodtransfer.foreign import plain

# detectron2's default, RGB: 255 * IMAGENET's mean is subtracted, and nothing divided by.
CAFFE = Normalization(IMAGENET.mean, (1 / 255,) * 3)

# In the name of what follows the trained encoder at a distance.
_FOLLOWERS = re.compile(r"momentum|encoder_k|key_|teacher|target|ema_|_ema|shadow|_m\.")


def _same(name: str) -> str:
    return name


def _from_children(name: str) -> str:
    """``nn.Sequential(*resnet.children())`` counts: 0 conv1, 1 bn1, 4 ... 7 layer1 ... layer4."""
    head, dot, rest = name.partition(".")
    named = {"0": "conv1", "1": "bn1"} | {str(n + 3): f"layer{n}" for n in range(1, 5)}
    return named.get(head, head) + dot + rest


def _from_detectron2(name: str) -> str:
    name = re.sub(r"^res(\d)\.", lambda m: f"layer{int(m[1]) - 1}.", name.removeprefix("stem."))
    name = name.replace("shortcut.norm.", "downsample.1.").replace("shortcut.", "downsample.0.")
    return re.sub(r"conv(\d)\.norm\.", r"bn\1.", name)


def to_detectron2(name: str) -> str:
    """The inverse, for writing."""
    name = re.sub(r"^layer(\d)\.", lambda m: f"res{int(m[1]) + 1}.", name)
    name = name.replace("downsample.0.", "shortcut.").replace("downsample.1.", "shortcut.norm.")
    name = re.sub(r"bn(\d)\.", r"conv\1.norm.", name)
    return name if name.startswith("res") else f"stem.{name}"


_CAFFE2_ENDS = {
    "w": "weight", "bn_s": "norm.weight", "bn_b": "norm.bias",
    "bn_gamma": "norm.weight", "bn_beta": "norm.bias",
    "bn_rm": "norm.running_mean", "bn_running_mean": "norm.running_mean",
    "bn_riv": "norm.running_var", "bn_running_var": "norm.running_var",
}  # fmt: skip


def _from_caffe2(name: str) -> str | None:
    """Detectron's: conv1_w, res_conv1_bn_s, res2_0_branch2a_w; None for its heads.

    Its conv1_b is one, too: a convolution before batch norm has no bias, and detectron2 leaves it out.
    """
    pattern = r"(?:(res\d)_(\d+)_branch(1|2[abc])|(?:res_)?(conv1))_(\w+)"
    found = re.fullmatch(pattern, name)
    if not found or found[5] not in _CAFFE2_ENDS:
        return None
    branch = {"1": "shortcut", "2a": "conv1", "2b": "conv2", "2c": "conv3", None: "stem.conv1"}
    where = f"{found[1]}.{found[2]}." if found[1] else ""
    return _from_detectron2(f"{where}{branch[found[3]]}.{_CAFFE2_ENDS[found[5]]}")


def _from_hugging_face(name: str) -> str:
    name = name.replace("embedder.embedder.", "stem.")
    name = re.sub(r"^encoder\.stages\.(\d+)\.layers\.", lambda m: f"layer{int(m[1]) + 1}.", name)
    name = re.sub(r"\blayer\.(\d+)\.convolution", lambda m: f"conv{int(m[1]) + 1}", name)
    name = re.sub(r"\blayer\.(\d+)\.normalization", lambda m: f"bn{int(m[1]) + 1}", name)
    for theirs, ours in (
        ("shortcut.convolution", "downsample.0"), ("shortcut.normalization", "downsample.1"),
        ("stem.convolution", "conv1"), ("stem.normalization", "bn1"), ("classifier.1.", "fc."),
    ):  # fmt: skip
        name = name.replace(theirs, ours)
    return name


@dataclass(frozen=True)
class Dialect:
    """One way to write a ResNet down.

    Attributes:
        name: by which it can be asked for, where names alone do not tell.
        words: for people.
        trunk: pattern of what stands before the trunk's names.
        stem: pattern of the first convolution's name, behind that.
        block: a name of the first block, which tells a trunk from any other ``conv1.weight``.
        rename: the trunk's names to torchvision's.
        beside: pattern of another name that the file, or the dict around its tensors, must have.
        also: pattern before tensors of the trunk that are kept elsewhere.
        caffe: takes BGR in 0 ... 255, less the mean and undivided, and strides in the first 1x1.
        note: what the reader is to be told.
    """

    name: str
    words: str
    trunk: str = ""
    stem: str = r"conv1(?:\.0)?\.weight"
    block: str = "layer1.0.conv1.weight"
    rename: Callable[[str], str | None] = _same
    beside: str = ""
    also: str = ""
    caffe: bool = False
    note: str = ""

    def strip(self, name: str) -> str | None:
        """The name in torchvision's words; None for what is not of the trunk."""
        found = re.match(self.trunk, name) or (self.also and re.match(self.also, name))
        return self.rename(name[found.end() :]) if found else None


_CHILDREN: dict[str, Any] = {
    "stem": r"0\.weight",
    "block": "4.0.conv1.weight",
    "rename": _from_children,
}
_D2: dict[str, Any] = {
    "trunk": r"(?:.*\.)?", "stem": r"stem\.conv1(?:_1)?\.weight", "block": "res2.0.conv1.weight",
    "rename": _from_detectron2, "also": r"roi_heads\.(?=res5\.)",
}  # fmt: skip
_HF_BLOCK = "encoder.stages.0.layers.0.layer.0.convolution.weight"
_HEAD = r".*(?:projection|prediction)_head"
_OF_LIGHTNING = "pytorch-lightning_version"
_FOLLOWS = "the trunk is a key, momentum or teacher encoder, a moving average of the one trained"

# The first that fits is taken.
DIALECTS = (
    Dialect("vissl", "VISSL", r".*_feature_blocks\."),
    Dialect("bolts", "lightning-bolts MoCo", r"encoder_q\.", beside=_OF_LIGHTNING),
    Dialect("moco", "official MoCo", r"(?:module\.)?encoder_q\."),
    Dialect("moco-key", "official MoCo, key encoder", r"(?:module\.)?encoder_k\."),
    Dialect("huggingface", "Hugging Face transformers", r"(?:.*\.)?",
            r"embedder\.embedder\.convolution\.weight", _HF_BLOCK, _from_hugging_face),
    Dialect("detectron", "Detectron (Caffe2)", "", "conv1_w", "res2_0_branch2a_w", _from_caffe2,
            caffe=True),
    Dialect("detectron2", "detectron2, torchvision's kind", **_D2,
            beside="matching_heuristics|pixel_mean of RGB"),
    Dialect("detectron2-caffe", "detectron2, caffe's kind", **_D2,
            beside="pixel_mean of BGR|Detectron2 Model Zoo", caffe=True),
    Dialect("lightly", "lightly, a ResNet's children in a Sequential", r"(?:.*\.)?", **_CHILDREN),
    Dialect("lightly", "lightly", r"backbone\.", beside=_HEAD),
    Dialect("smp", "segmentation-models-pytorch", r"(?:.*\.)?encoder\.", beside=r"(?:.*\.)?decoder\."),
    Dialect("solo-learn", "solo-learn", r"(?:backbone|encoder)\.",
            beside=r"projector\.|momentum_(?:backbone|encoder)\.|classifier\."),
    Dialect("bolts", "lightning-bolts", r"(?:encoder|online_network\.encoder|model)\.",
            beside=r".*projection(?:_head)?\.|projector\."),
    Dialect("torchvision", "torchvision or timm, with a classifier", beside=r"fc\."),
    Dialect("torchvision", "torchvision, timm or smp, without a classifier"),
    Dialect("wrapped", "torchvision's names below a prefix", r".*\."),
)  # fmt: skip


def recognise(
    path: str, names: Collection[str], around: Collection[str], asked: str | None = None
) -> Dialect | None:
    """The dialect of a file with the prefix that it uses; None where no ResNet is found.

    Args:
        path: for the sentence of an error.
        names: of the tensors.
        around: what the dict around the tensors says of itself.
        asked: the name of a dialect, for a file that does not say.

    Raises:
        ValueError: for two trunks neither of which follows the other, and for a file whose names do
            not tell what its network wants to see.
    """
    if asked is not None and asked not in {dialect.name for dialect in DIALECTS}:
        known = ", ".join(dict.fromkeys(dialect.name for dialect in DIALECTS))
        raise ValueError(f"Expected a dialect among {known}, but got {asked!r}.")
    everything = [*names, *around]
    for dialect in DIALECTS:
        if asked is not None and dialect.name != asked:
            continue
        beside = dialect.beside if asked is None else ""
        if beside and not any(re.match(beside, name) for name in everything):
            continue
        if found := _place(path, dialect, names):
            return found
    if asked is None and _place(path, Dialect("", "", **_D2), names):
        raise ValueError(
            f"Expected {path} to tell whether it takes RGB or BGR, but detectron2's names alone do "
            "not: load with dialect='detectron2' for weights of torchvision's kind (RGB, mean and "
            "std), or dialect='detectron2-caffe' for its own configurations (BGR, mean alone)."
        )
    return None


def _place(path: str, dialect: Dialect, names: Collection[str]) -> Dialect | None:
    """The dialect with the very prefix of the file's trunk."""
    known = re.compile(rf"({dialect.trunk}){dialect.stem}")
    prefixes = {m[1] for name in names if (m := known.fullmatch(name))}
    prefixes = {prefix for prefix in prefixes if prefix + dialect.block in names}
    leading = {prefix for prefix in prefixes if not _FOLLOWERS.search(prefix)}
    chosen = leading or prefixes
    if len(chosen) > 1:
        raise ValueError(
            f"Expected one trunk in {path}, but it holds {len(chosen)}, below "
            f"{' and '.join(repr(plain(p)) for p in sorted(chosen)[:5])}: save the state dict of the one "
            "you mean."
        )
    for prefix in chosen:
        return replace(dialect, trunk=re.escape(prefix), note="" if leading else _FOLLOWS)
    return None
