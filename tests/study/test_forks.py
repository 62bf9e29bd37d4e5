"""Forks instead of imports: real processes, their exit codes, signals and ends."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from goodtransfer.study import forks
from goodtransfer.study.plan import Study
from goodtransfer.study.results import Results

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))
import tiny  # noqa: E402, F401 - adds the scale

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="forks are for Linux")

CLIENT = """
import os, signal, sys, time
from goodtransfer.study import forks
code = forks.fork()
if code is not None:
    print("client", os.getpid(), flush=True)
    sys.exit(code)
def told(number, frame):
    print("told", number, flush=True)
    sys.exit(100 + number)
what = sys.argv[1]
if what == "say":
    print(os.getpid(), os.getcwd(), os.environ["WORD"], "imaplib" in sys.modules, sys.stdin.read())
    print("to stderr", file=sys.stderr)
    sys.exit(7)
if what == "raise":
    raise RuntimeError("as it is")
if what == "handle":
    signal.signal(signal.SIGTERM, told)
if what == "child":
    os.fork()
print("at work", os.getpid(), flush=True)
time.sleep(1 if what == "briefly" else 60)
"""


@pytest.fixture(scope="module")
def client(tmp_path_factory):
    """Starts a client with the server's socket."""
    script = tmp_path_factory.mktemp("forks") / "client.py"
    script.write_text(CLIENT)

    def start(socket, *what, **options):
        env = {**os.environ, "WORD": "word", forks.VARIABLE: str(socket)}
        pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
        call = [sys.executable, str(script), *what]
        return subprocess.Popen(call, env=env, text=True, **pipes, **options)

    return start


@pytest.fixture(scope="module")
def server():
    with forks.server("imaplib") as socket:
        yield socket


def alive(process):
    """Whether there is such a process, other than a zombie."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def gone(process, seconds=10):
    until = time.monotonic() + seconds
    while alive(process) and time.monotonic() < until:
        time.sleep(0.02)
    return not alive(process)


def test_a_fork_has_the_clients_streams_folder_and_environment(server, client, tmp_path):
    process = client(server, "say", cwd=tmp_path)
    out, err = process.communicate("from stdin")
    said, own = out.splitlines()
    number, *rest = said.split(maxsplit=4)
    assert rest == [str(tmp_path), "word", "True", "from stdin"]
    assert own == f"client {process.pid}"
    assert int(number) != process.pid
    assert err == "to stderr\n"
    assert process.returncode == 7


def test_an_error_is_printed_as_ever(server, client):
    process = client(server, "raise")
    _, err = process.communicate()
    assert err.rstrip().endswith("RuntimeError: as it is")
    assert process.returncode == 1


@pytest.mark.parametrize(
    ("what", "number", "code", "said"),
    [
        ("sleep", signal.SIGTERM, 143, ""),
        ("sleep", signal.SIGINT, 130, ""),
        ("handle", signal.SIGTERM, 115, "told 15"),
    ],
)
def test_signals_reach_the_fork_and_its_end_the_client(server, client, what, number, code, said):
    process = client(server, what)
    assert process.stdout.readline().startswith("at work")
    process.send_signal(number)
    out, _ = process.communicate(timeout=20)
    assert process.returncode == code
    assert said in out


def test_a_killed_client_takes_its_fork_along(server, client):
    process = client(server, "child")
    both = [int(process.stdout.readline().split()[-1]) for _ in range(2)]
    assert all(map(alive, both))
    process.kill()
    assert all(map(gone, both))
    process.communicate()


def test_many_at_once_each_get_their_own(server, client):
    processes = [client(server, "say") for _ in range(4)]
    said = [process.communicate(f"number {n}")[0] for n, process in enumerate(processes)]
    assert [out.splitlines()[0].split()[-1] for out in said] == [str(n) for n in range(4)]
    assert len({out.split()[0] for out in said}) == 4


def test_without_a_server_a_command_imports_for_itself(client, tmp_path):
    process = client(tmp_path / "nothing", "say")
    out, _ = process.communicate("x")
    assert out.split()[0] == str(process.pid)
    assert out.split()[3] == "False"
    assert process.returncode == 7


def test_the_server_ends_with_its_engine_and_after_its_forks(client, tmp_path):
    code = (
        "import sys, time\nfrom goodtransfer.study import forks\n"
        "with forks.server('imaplib') as path:\n    print(path, flush=True)\n    time.sleep(60)"
    )
    engine = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    socket = Path(engine.stdout.readline().strip())
    process = client(socket, "briefly")
    fork = int(process.stdout.readline().split()[-1])
    server = int(Path(f"/proc/{fork}/stat").read_text().rpartition(")")[2].split()[1])
    assert alive(server)
    engine.kill()
    engine.wait()
    process.communicate(timeout=20)
    assert process.returncode == 0  # it was let finish
    assert gone(server)
    assert not socket.parent.exists()
    engine.stdout.close()


def test_a_real_cell_is_made_without_its_client_importing_torch(tmp_path):
    study = Study.open(tmp_path / "s", scale="tiny", tables=["floor"])
    study.save()
    key = study.cells()[0].key
    code = (
        "import sys; sys.argv = sys.argv[1:]\nimport runpy\n"
        "try: runpy.run_path(sys.argv[0], run_name='__main__')\n"
        "except SystemExit as end: print(end.code, 'torch' in sys.modules)"
    )
    call = [sys.executable, "-c", code, str(HERE / "tiny_cli.py"), "study", "cell", key]
    with forks.server() as socket:
        env = {**os.environ, forks.VARIABLE: str(socket), "OMP_NUM_THREADS": "1"}
        done = subprocess.run(
            [*call, "--out", str(study.out)], env=env, capture_output=True, text=True, check=False
        )
        (server,) = (p for p in Path("/proc").glob("[0-9]*/cmdline") if p.is_file()
                     and str(socket) in p.read_text())  # fmt: skip
        assert len(list((server.parent / "task").iterdir())) == 1  # threads do not survive a fork
    assert done.stdout.split() == ["0", "False"], done.stderr
    assert Results(study).done(key)
    assert not (study.out / "work" / key).exists()
