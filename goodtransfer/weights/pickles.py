"""Reading pickles without running them: numpy arrays alone, and inert stand-ins for settings."""

import math
import pickle
from collections import OrderedDict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from goodtransfer.foreign import plain


class Inert:
    """Stands for a foreign class or function: takes any arguments and state, and does nothing."""

    def __init__(self, *_: Any, **__: Any) -> None: ...

    def __new__(cls, *_: Any, **__: Any) -> "Inert":
        return super().__new__(cls)

    def __setstate__(self, state: Any) -> None: ...


class InertDict:
    """Stands for a foreign kind of dict: a plain one, whatever its arguments."""

    def __new__(cls, *_: Any, **__: Any) -> Any:
        return OrderedDict()


# Settings that old checkpoints carry beside their tensors. Each is read into a stand-in that has no
# behaviour; the packages named here are neither needed nor imported.
HARMLESS: Mapping[str, type] = dict.fromkeys(
    (
        "_codecs.encode",
        "argparse.Namespace",
        "builtins.dict", "builtins.float", "builtins.int", "builtins.list", "builtins.object",
        "numpy.dtype", "numpy.ndarray",
        "numpy.core.multiarray.scalar", "numpy.core.multiarray._reconstruct",
        "numpy._core.multiarray.scalar", "numpy._core.multiarray._reconstruct",
        "omegaconf.base.ContainerMetadata", "omegaconf.base.Metadata", "omegaconf.nodes.AnyNode",
        "omegaconf.dictconfig.DictConfig", "omegaconf.listconfig.ListConfig",
        "pathlib.Path", "pathlib.PosixPath", "pathlib.PurePosixPath", "pathlib.WindowsPath",
        # Lightning before 1.5 keeps the state of a callback by its class.
        "pytorch_lightning.callbacks.early_stopping.EarlyStopping",
        "pytorch_lightning.callbacks.model_checkpoint.ModelCheckpoint",
        "typing.Any",
    ),
    Inert,
) | dict.fromkeys(
    (
        "collections.defaultdict",
        "easydict.EasyDict",
        "fvcore.common.config.CfgNode",
        "lightning.fabric.utilities.data.AttributeDict",
        "lightning.pytorch.utilities.parsing.AttributeDict",
        "lightning_fabric.utilities.data.AttributeDict",
        "pytorch_lightning.utilities.parsing.AttributeDict",
        "vissl.config.attr_dict.AttrDict",
        "vissl.utils.hydra_config.AttrDict",
        "yacs.config.CfgNode",
    ),
    InertDict,
)  # fmt: skip


class _Dtype:
    """What a pickled numpy dtype says: kind and size, then the byte order."""

    def __init__(self, code: Any, *_: Any) -> None:
        self.code, self.order = str(code), "="

    def __setstate__(self, state: Any) -> None:
        self.order = state[1] if state[1] in ("<", ">") else "="

    def numeric(self) -> np.dtype[Any]:
        dtype = np.dtype(self.order + self.code)
        if dtype.kind not in "fiub":
            raise pickle.UnpicklingError(f"an array of dtype {dtype}")
        return dtype


def _array(data: Any, dtype: Any, shape: Any, order: str) -> NDArray[Any]:
    """An array of exactly these bytes."""
    if not isinstance(dtype, _Dtype):
        raise pickle.UnpicklingError("an array without a dtype")
    if isinstance(data, str):  # bytes of Python 2
        data = data.encode("latin1")
    numeric = dtype.numeric()
    if math.prod(shape) * numeric.itemsize != len(data):
        raise pickle.UnpicklingError(f"an array of shape {tuple(shape)} in {len(data)} bytes")
    return np.frombuffer(data, numeric).reshape(shape, order="F" if order == "F" else "C").copy()


class _Array:
    """A numpy array before its state comes; `Reader` puts :attr:`value` in its place."""

    value: NDArray[Any] | None = None

    def __setstate__(self, state: Any) -> None:
        _, shape, dtype, fortran, data = state
        self.value = _array(data, dtype, shape, "F" if fortran else "C")


class _Names(dict[str, Any]):
    """An OrderedDict without the attributes that torch hangs on a state dict."""

    def __setstate__(self, state: Any) -> None:
        pass


class _Call:
    """A function that a pickle may call, but not change."""

    __slots__ = ("function",)

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function = function

    def __call__(self, *arguments: Any) -> Any:
        return self.function(*arguments)

    def __setstate__(self, state: Any) -> None:
        raise pickle.UnpicklingError("a function with a state")


def _scalar(dtype: Any, data: Any = b"") -> Any:
    return _array(data, dtype, (), "C").item()


def _encode(text: str, encoding: str = "latin1") -> bytes:
    """``_codecs.encode``, by which Python 3 writes bytes in protocol 2."""
    return text.encode("latin1" if encoding == "latin1" else "utf-8")


_ADMITTED = {
    "collections.OrderedDict": _Call(_Names),
    "_codecs.encode": _Call(_encode),
    "numpy.dtype": _Call(_Dtype),
    "numpy.ndarray": None,  # ``_reconstruct`` is given it
} | {
    f"numpy.{core}.{name}": _Call(stand_in)
    for core in ("core", "_core")
    for name, stand_in in (
        ("multiarray._reconstruct", lambda *_: _Array()),
        ("multiarray.scalar", _scalar),
        ("numeric._frombuffer", _array),
    )
}


class _Arrays(pickle._Unpickler):
    """Finds nothing but the few names above, each of them a function of this file.

    It is Python's own in Python, since that in C makes room for as many values as a pickle numbers.
    """

    def find_class(self, module: str, name: str) -> Any:
        full = f"{module}.{name}"
        if full not in _ADMITTED:
            raise pickle.UnpicklingError(f"{full}, which is not a numpy array")
        return _ADMITTED[full]


def read_arrays(path: Path) -> Any:
    """The content of a pickle of numpy arrays and plain types, as detectron2 writes them.

    Raises:
        ValueError: naming the first thing that is anything else, before it is run.
    """
    try:
        with path.open("rb") as file:
            return _filled(_Arrays(file, encoding="latin1").load(), {})
    except Exception as error:  # a broken pickle can make the reader raise anything
        what = str(error) or type(error).__name__
        raise ValueError(
            f"Expected {path} to hold numpy arrays and plain types only, but it holds "
            f"{plain(what.splitlines()[0])}: get the weights as safetensors or from their author's page."
        ) from error


def _filled(content: Any, done: dict[int, Any]) -> Any:
    """The arrays in place of what stood for them; they lie in dicts of dicts, one of which may come often."""
    if not isinstance(content, dict):
        return content.value if isinstance(content, _Array) else content
    if id(content) not in done:
        done[id(content)] = {name: _filled(value, done) for name, value in content.items()}
    return done[id(content)]
