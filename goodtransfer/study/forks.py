"""A process that has imported the heavy libraries once, and forks one for each cell.

Importing torch, torchvision and Lightning costs each cell seconds; a fork has them at once. The
engine starts ``python -m goodtransfer.study.forks SOCKET`` and holds its standard input: when that
ends, so does the server. `goodtransfer study cell` calls ``fork`` before it imports anything heavy.
It lends its terminal, folder and environment, hands on the signals it gets, and takes over the exit
code. For Linux, before CUDA and threads, neither of which survives a fork.
"""

import contextlib
import gc
import json
import os
import runpy
import selectors
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

# Where the server listens; cells that find nothing there import for themselves.
VARIABLE = "GOODTRANSFER_FORKS"
_PATIENCE = 120.0  # seconds, for a server that is still importing


@contextmanager
def server(module: str = "goodtransfer.study.cells") -> Iterator[Path]:
    """Run a server that has imported a module, for as long as this process; give its socket."""
    # Not in the study's folder: that may be a network's, or its name longer than a socket's may be.
    with tempfile.TemporaryDirectory(prefix="goodtransfer-", ignore_cleanup_errors=True) as folder:
        path = Path(folder) / "forks"
        # BLAS would start its threads at import.
        environment = os.environ | {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
        call = [sys.executable, "-m", __name__, str(path), module]
        process = subprocess.Popen(
            call, stdin=subprocess.PIPE, env=environment, start_new_session=True
        )
        try:
            while not path.exists() and process.poll() is None:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(0.02)
            yield path
        finally:
            try:
                process.communicate(timeout=30)  # closes its input
            except subprocess.TimeoutExpired:
                process.kill()


def fork() -> int | None:
    """Run this very command as a fork of the server; its exit code, or None without a server."""
    path = os.environ.get(VARIABLE)
    if not path or sys.platform != "linux":
        return None
    with socket.socket(socket.AF_UNIX) as server, _handing_on(server) as begin:
        server.settimeout(_PATIENCE)
        request = {"argv": sys.argv, "folder": os.getcwd(), "environment": dict(os.environ)}
        body = json.dumps(request).encode()
        try:
            server.connect(path)
            socket.send_fds(server, [len(body).to_bytes(8, "big")], [0, 1, 2])
            server.sendall(body)
            if server.recv(1) != b"+":
                return None
        except OSError:
            return None
        begin()
        server.settimeout(None)
        try:
            code = server.recv(8)
        except OSError:
            code = b""
    if not code:
        print("Expected an exit code, but the server of forks has ended.", file=sys.stderr)
        return 1
    return int(code)


@contextmanager
def _handing_on(server: socket.socket) -> Iterator[Callable[[], None]]:
    """Let SIGINT and SIGTERM go to the fork, once there is one: it ends by them, and we with it."""
    begun: list[bool] = []

    def hand_on(number: int, frame: Any) -> None:
        if not begun:
            os._exit(128 + number)  # a fork that is begun just now is killed, as its client is gone
        with contextlib.suppress(OSError):
            server.sendall(bytes([number]))

    before = {number: signal.signal(number, hand_on) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: begun.append(True)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class _Server:
    """One loop over sockets and ended forks, without threads, which do not survive a fork."""

    def __init__(self, path: str) -> None:
        self.selector = selectors.DefaultSelector()
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.bind(path)
        self.socket.listen(512)  # those that come during the import wait here
        self.forks: dict[int, tuple[socket.socket, int]] = {}  # by process
        self.ended = False

    def serve(self) -> dict[str, Any] | None:
        """The request, within a fork; None at the end, within the server."""
        self._watch(self.socket, self._accept)
        self._watch(0, self._end)
        while self.forks or not self.ended:
            for key, _ in self.selector.select():
                if request := key.data():
                    return dict(request)
        return None

    def _watch(self, file: Any, then: Callable[[], Any]) -> None:
        self.selector.register(file, selectors.EVENT_READ, then)

    def _end(self) -> None:
        """The engine has ended; forks at work are waited for."""
        if os.read(0, 1024):
            return
        self.selector.unregister(0)
        self.selector.unregister(self.socket)
        self.socket.close()
        self.ended = True

    def _accept(self) -> dict[str, Any] | None:
        client, _ = self.socket.accept()
        files: list[int] = []
        try:
            client.settimeout(10)
            head, files, *_ = socket.recv_fds(client, 8, 3)
            request = _read(client, int.from_bytes(head, "big"))
            client.sendall(b"+")
            process = os.fork()
        except (OSError, ValueError):  # the client has gone
            client.close()
            process = -1
        if process == 0:
            self._become(client, files, request)
            return request
        for file in files:
            os.close(file)
        if process > 0:
            pidfd = os.pidfd_open(process)
            self.forks[process] = (client, pidfd)
            self._watch(client, lambda: self._signal(process, client))
            self._watch(pidfd, lambda: self._reap(process))
        return None

    def _become(self, client: socket.socket, files: list[int], request: dict[str, Any]) -> None:
        """Take over the client's files, folder and environment; let go of the server's."""
        os.setsid()  # to be signalled without the server, and with its own loader processes
        for number, file in enumerate(files):
            os.dup2(file, number)
            os.close(file)
        self.selector.close()
        for opened in (client, self.socket, *(other for other, _ in self.forks.values())):
            opened.close()
        for _, pidfd in self.forks.values():
            os.close(pidfd)
        os.chdir(request["folder"])
        os.environ.clear()
        os.environ.update(request["environment"])

    def _signal(self, process: int, client: socket.socket) -> None:
        """Hand on what the client was sent; a client that was killed takes its fork along."""
        if process not in self.forks:
            return  # it has ended meanwhile
        try:
            numbers = client.recv(64)
        except OSError:
            numbers = b""
        with contextlib.suppress(ProcessLookupError):
            for number in numbers:
                os.kill(process, number)
            if not numbers:
                self.selector.unregister(client)
                os.kill(process, signal.SIGKILL)
                os.killpg(process, signal.SIGKILL)  # its loader processes

    def _reap(self, process: int) -> None:
        client, pidfd = self.forks.pop(process)
        code = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
        with contextlib.suppress(OSError):
            client.sendall(str(code if code >= 0 else 128 - code).encode())
        with contextlib.suppress(KeyError):  # gone before
            self.selector.unregister(client)
        client.close()
        self.selector.unregister(pidfd)
        os.close(pidfd)


def _read(client: socket.socket, length: int) -> dict[str, Any]:
    body = bytearray()
    while len(body) < length:
        part = client.recv(length - len(body))
        if not part:
            raise ValueError("Expected a whole request, but the client has gone.")
        body += part
    return dict(json.loads(body))


def _run(request: dict[str, Any]) -> None:
    """Do what the client's command would have done, in a process like its own."""
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    os.environ.pop(VARIABLE, None)
    if torch := sys.modules.get("torch"):  # which reads it at import
        torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", 1)))
    sys.argv = request["argv"]
    runpy.run_path(sys.argv[0], run_name="__main__")


def _main(path: str, module: str) -> None:
    server = _Server(path)
    import_module(module)
    if torch := sys.modules.get("torch"):
        torch.set_num_threads(1)
    gc.collect()
    gc.freeze()  # pages that forks share stay as they are
    request = server.serve()
    if request is not None:
        _run(request)
    else:
        shutil.rmtree(Path(path).parent, ignore_errors=True)  # else the engine's, if it could


if __name__ == "__main__":
    _main(*sys.argv[1:])
