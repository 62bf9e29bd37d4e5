"""Cases in a process of their own, under a limit of time and memory, watched for what no reader may do."""

import faulthandler
import multiprocessing
import os
import re
import resource
import sys
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from goodtransfer.cli import _sentence

RESULT, SENTENCE = "a result", "one sentence"

_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
_STARTS = ("subprocess.", "os.system", "os.exec", "os.posix_spawn", "os.spawn", "os.fork", "pty.")
_CONNECTS = ("socket.connect", "socket.getaddrinfo", "socket.bind", "urllib.")
_CHANGES = ("os.remove", "os.rename", "os.mkdir", "os.rmdir", "os.link", "os.symlink", "os.chmod",
            "os.truncate", "shutil.", "tempfile.")  # fmt: skip


def outcomes(
    case: Callable[[int], Any],
    count: int,
    folder: Path,
    *,
    seconds: float = 20,
    gigabytes: float = 3,
) -> list[str]:
    """What became of each case: `RESULT`, `SENTENCE`, or what is wrong with it.

    Args:
        case: is given its number; it writes a broken file below the folder and has it read.
        count: of the cases.
        folder: the only one that may be written to, and that an error must name a file of.
        seconds: of one case.
        gigabytes: that a case may take beside what the test has.
    """
    found: list[str] = []
    while len(found) < count:
        found += _of_one_process(case, range(len(found), count), folder, seconds, gigabytes)
    return found


def assert_clean(found: list[str], count: int, *, least: float = 0.05) -> None:
    """Every case ended well, and not all in the same way."""
    odd = {number: told for number, told in enumerate(found) if told not in (RESULT, SENTENCE)}
    assert not odd, f"{len(odd)} of {count}: {dict(list(odd.items())[:20])}"
    assert len(found) == count
    counts = Counter(found)
    assert min(counts[RESULT], counts[SENTENCE]) >= least * count, counts


def fault_of(text: str, folder: Path) -> str:
    """What is wrong with the words of an error; nothing where they are one sentence that names a file."""
    told, _, tree = text.partition("\nThe expected tree is")
    if not tree:
        told, _, tree = text.partition(" The expected tree is")
    if str(folder) not in told:
        return f"names no file: {text!r:.300}"
    if re.search(r"[\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069]", told):
        return f"is not one line: {text!r:.300}"
    return f"is {len(told)} long: {text!r:.300}" if len(told) > 1500 else ""


def _of_one_process(
    case: Callable[[int], Any], numbers: range, folder: Path, seconds: float, gigabytes: float
) -> list[str]:
    """The outcomes up to the last, or to one that the process did not survive."""
    here, there = multiprocessing.Pipe(duplex=False)
    context = multiprocessing.get_context("fork")
    worker = context.Process(target=_work, args=(there, case, numbers, folder, gigabytes))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of threads, which do not go along
        worker.start()
    there.close()
    found: list[str] = []
    try:
        while len(found) < len(numbers):
            if not here.poll(seconds):
                found.append(f"a hang: nothing for {seconds} seconds")
                break
            found.append(here.recv())
    except EOFError:
        worker.join()
        found.append(f"a crash: the process ended with {worker.exitcode}")
    worker.kill()
    worker.join()
    here.close()
    return found


def _work(
    sender: Any, case: Callable[[int], Any], numbers: range, folder: Path, gigabytes: float
) -> None:
    limit = _memory() + int(gigabytes * 2**30)
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    sys.dont_write_bytecode = True
    faulthandler.disable()  # the outcome tells of a crash
    silent = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silent, 2)  # C libraries write there
    warnings.simplefilter("ignore")
    done: list[str] = []
    sys.addaudithook(_watch(folder.resolve(), done))
    for number in numbers:
        done.clear()
        told = _outcome(case, number, folder)
        sender.send(done[0] if done else told)
    os._exit(0)


def _outcome(case: Callable[[int], Any], number: int, folder: Path) -> str:
    try:
        case(number)
    except (ValueError, OSError) as error:
        if _sentence(error) is None:
            return f"{type(error).__name__} of {_home(error)}: {error!s:.300}"
        return fault_of(str(error), folder) or SENTENCE
    except BaseException as error:
        return f"{type(error).__name__} of {_home(error)}: {error!s:.300}"
    return RESULT


def _home(error: BaseException) -> str:
    """Where it arose."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return "nowhere" if trace is None else f"{trace.tb_frame.f_code.co_filename}:{trace.tb_lineno}"


def _watch(folder: Path, done: list[str]) -> Callable[[str, tuple[Any, ...]], None]:
    def inside(path: Any) -> bool:
        if isinstance(path, int):
            return True
        place = os.path.realpath(os.fsdecode(path))
        return place == os.devnull or Path(place).is_relative_to(folder)

    def watch(event: str, arguments: tuple[Any, ...]) -> None:
        wrong = event.startswith(_STARTS + _CONNECTS)
        if event == "open":
            path, mode, flags = arguments
            writes = bool(flags & _WRITES) or any(letter in (mode or "") for letter in "wax+")
            wrong = writes and not inside(path)
        elif event.startswith(_CHANGES):
            wrong = not inside(arguments[0])
        if wrong:
            done.append(f"{event} {arguments!r:.300}")
            raise PermissionError(event)

    return watch


def _memory() -> int:
    """Bytes that this process has addresses for."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    return pages * resource.getpagesize()
