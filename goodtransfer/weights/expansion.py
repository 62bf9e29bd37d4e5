"""Refusing pickles that are quick to read and endless to walk.

A list of two lists of two lists ... takes a few bytes a level, since what comes again is named by a
number; whoever hashes, compares or prints it walks through each copy. So the opcodes are followed before
anything is made of them, as ``pickletools.dis`` does.
"""

import pickletools
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, TypeAlias

from goodtransfer.foreign import plain

_MOST = 10**7  # values, of which an honest file has some ten thousand
_COPIES = 100  # of a value, at most and on average, in an honest file
_FEW = 10**6  # steps that nobody minds

_FILLED = {"APPEND", "APPENDS", "SETITEM", "SETITEMS", "ADDITEMS", "BUILD"}
_NUMBERED = {"PUT", "BINPUT", "LONG_BINPUT"}
_NAMED = {"GET", "BINGET", "LONG_BINGET"}

_Value: TypeAlias = list[Any]  # of those that it holds, or is made of
_ATOM: _Value = []


def check_expansion(path: Path, pickles: int) -> None:
    """Refuse a file with such a pickle, and one that cannot be followed.

    Args:
        path: of a zip archive, each of whose pickles is looked at, or of a file that begins with some.
        pickles: how many it begins with.

    Raises:
        ValueError: naming the file.
    """
    made: list[_Value] = []
    seen = 0
    try:
        for file, count in _pickles(path, pickles):
            for _ in range(count):
                seen = _follow(file, made, seen)
    except Exception as error:  # a broken file can be wrong in any way
        raise ValueError(
            f"Expected weights in {path}, but it is damaged, or something else: {plain(_first(error))}"
        ) from error
    if seen > _MOST or _steps(made) > _COPIES * seen + _FEW:
        raise ValueError(
            f"Expected weights in {path}, but its {seen:,} values or more hold one another so often that to "
            "walk through them would take for ever: it was made to harm, so get the weights elsewhere."
        )


def _first(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def _pickles(path: Path, count: int) -> Iterator[tuple[IO[bytes], int]]:
    """Where there are pickles, and how many one after the other."""
    with path.open("rb") as file:
        if file.read(4) != b"PK\x03\x04":
            file.seek(0)
            yield file, count
            return
        with zipfile.ZipFile(file) as archive:
            for entry in archive.infolist():
                if entry.filename.lower().endswith(".pkl"):
                    with archive.open(entry) as inside:
                        yield inside, 1


def _follow(file: IO[bytes], made: list[_Value], seen: int) -> int:
    """Add what a pickle makes; gives how many values there are by then, with plain ones."""
    stack: list[_Value] = []
    marks: list[int] = []
    numbered: dict[int, _Value] = {}
    number: Any
    for op, number, _ in pickletools.genops(file):
        if op.name == "MARK":
            marks.append(len(stack))
        elif op.name in _NAMED:
            stack.append(numbered[int(number)])
        elif op.name in _NUMBERED:
            numbered[int(number)] = stack[-1]
        elif op.name == "MEMOIZE":
            numbered[len(numbered)] = stack[-1]
        elif op.name == "POP" and marks and marks[-1] == len(stack):
            marks.pop()
        else:
            before = [kind.name for kind in op.stack_before]
            under = before.index("mark") if "mark" in before else len(before)
            start = (marks.pop() if under < len(before) else len(stack)) - under
            if start < 0:
                raise ValueError("a pickle that takes more than there is")
            taken = stack[start:]
            del stack[start:]
            if op.name == "DUP":
                stack += [*taken, *taken]
            elif op.name in _FILLED and taken[0] is not _ATOM:
                taken[0].extend(taken[1:])
                stack.append(taken[0])
            elif op.stack_after:
                seen += 1
                plain_one = not before and not op.name.startswith("EMPTY_")
                if not plain_one:
                    made.append(taken)
                stack.append(_ATOM if plain_one else taken)
        if seen > _MOST:
            break
    return seen


def _steps(made: list[_Value]) -> int:
    """What it takes to walk through each of these values, copy by copy, one after the other."""
    steps = {id(_ATOM): 1}
    for root in made:
        if id(root) in steps:
            continue
        steps[id(root)] = 0
        todo = [(root, iter(root))]
        while todo:
            value, rest = todo[-1]
            inner = next(rest, None)
            if inner is None:
                total = 1 + sum(steps[id(held)] for held in value)
                steps[id(value)] = min(total, 10**18)
                todo.pop()
            elif id(inner) not in steps:
                steps[id(inner)] = 0  # until it is known: nobody walks round a ring
                todo.append((inner, iter(inner)))
    return sum(steps[id(value)] for value in made)
