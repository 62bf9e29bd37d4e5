"""A weight file in words and counts."""

from collections.abc import Collection
from dataclasses import dataclass

from goodtransfer.encoders import Normalization
from goodtransfer.foreign import plain
from goodtransfer.weights.files import Provenance


@dataclass(frozen=True)
class Report:
    """What a weight file holds, and how it fits the encoder that it is for; ``print`` it.

    Attributes:
        path: of the file.
        dialect: who writes tensors under such names, and the prefix before them.
        architecture: what ``encoders.build`` makes it by; None where it cannot.
        stem: the layers before the first pooling of a ResNet.
        normalization: the input convention; None for input that is normalised already.
        provenance: of our own files.
        wanted: the number of the encoder's tensors.
        matched: their names that the file fills.
        missing: their names that it does not; counters of batches apart, on which nothing depends.
        unexpected: names of its trunk that the encoder lacks.
        aside: tensors of heads, queues and other encoders.
        dtypes: of the matched tensors.
        parameters: in the matched weights.
        notes: what is done to the weights beside copying.
        fault: why it is refused, in a sentence; empty where it is not.
        bearable: whether ``partial=True`` takes it all the same.

    >>> names = {"matched": ("conv1.weight",), "missing": ("bn1.weight",)}
    >>> print(Report("a.pth", "torchvision", "resnet50", "7x7", None, None, wanted=2, **names))
    a.pth
      dialect       torchvision
      architecture  resnet50
      stem          7x7
      input         normalised already
      tensors       1 of 2 matched, 1 missing (bn1.weight, ...), 0 unexpected, 0 left aside
      parameters    0
    """

    path: str
    dialect: str
    architecture: str | None
    stem: str
    normalization: Normalization | None
    provenance: Provenance | None
    wanted: int = 0
    matched: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()
    unexpected: tuple[str, ...] = ()
    aside: int = 0
    dtypes: tuple[str, ...] = ()
    parameters: int = 0
    notes: tuple[str, ...] = ()
    fault: str = ""
    bearable: bool = False

    def __str__(self) -> str:
        tensors = f"{len(self.matched)} of {self.wanted} matched, " if self.wanted else ""
        tensors += f"{named('missing', self.missing)}, {named('unexpected', self.unexpected)}"
        rows = [
            ("dialect", self.dialect),
            ("architecture", self.architecture or "none that can be built"),
            ("stem", self.stem),
            ("input", _convention(self.normalization)),
            ("provenance", _origin(self.provenance)),
            ("tensors", f"{tensors}, {self.aside} left aside"),
            ("dtype", ", ".join(self.dtypes)),
            ("parameters", f"{self.parameters:,}"),
            *(("note", note) for note in self.notes),
            ("refused", self.fault),
        ]
        lines = [f"  {name:<12}  {value}" for name, value in rows if value]
        return "\n".join([self.path, *lines])


def named(what: str, names: Collection[str]) -> str:
    """A count with the first names."""
    some = ", ".join(plain(name) for name in list(names)[:3])
    return f"{len(names)} {what}" + (f" ({some}, ...)" if names else "")


def _convention(normalization: Normalization | None) -> str:
    if normalization is None:
        return "normalised already"
    mean, std = (", ".join(f"{value:.4g}" for value in values) for values in normalization)
    return f"RGB in [0, 1], mean {mean}, std {std}"


def _origin(provenance: Provenance | None) -> str:
    if provenance is None:
        return ""
    told = (plain(f"{k} {v}") for k, v in provenance.origin.items())
    return ", ".join(["goodtransfer", *told])
