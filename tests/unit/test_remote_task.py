"""A remote task's container without a cluster: the command that a layer would run, as a process in
an empty folder with a clean environment, its code fetched from a web server of the test's."""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import http.server
import io
import json
import os
import signal
import subprocess
import sys
import tarfile
import textwrap
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
BOOTSTRAP = (REPOSITORY / "crates/compute/src/remote/bootstrap.py").read_text()
MODULE = REPOSITORY / "python/metaflow"
LOG = "F/runs/1/start/7.0.log/"

FLOW = """
    import os, sys, time
    from metaflow import FlowSpec, step, current, Parameter

    class F(FlowSpec):
        alpha = Parameter("alpha", default=3)

        @step
        def start(self):
            {body}
            self.next(self.end)

        @step
        def end(self):
            pass

    if __name__ == "__main__":
        F()
"""


class Server(http.server.ThreadingHTTPServer):
    """Answers with what the test has scripted, then with the objects."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.objects: dict[str, bytes] = {}
        self.script: list[tuple[int, bytes]] = []
        self.asked: list[str] = []

    def url(self, key: str) -> str:
        return f"http://127.0.0.1:{self.server_port}/{key}?signature=secret"


class Handler(http.server.BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        key = self.path.lstrip("/").split("?")[0]
        self.server.asked.append(key)
        if self.server.script:
            status, body = self.server.script.pop(0)
        else:
            body = self.server.objects.get(key, b"")
            status = 200 if body else 404
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        return


@pytest.fixture
def server() -> Iterator[Server]:
    made = Server()
    thread = threading.Thread(target=made.serve_forever, daemon=True)
    thread.start()
    yield made
    made.shutdown()
    made.server_close()


def archive(flow: str, change_extension: Any = None) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz", compresslevel=1) as tar:

        def add(name: str, data: bytes) -> None:
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            tar.addfile(entry, io.BytesIO(data))

        for path in sorted(MODULE.iterdir()):
            if path.suffix in (".py", ".so"):
                data = path.read_bytes()
                if path.suffix == ".so" and change_extension is not None:
                    data = change_extension(data)
                add(f".mf_code/metaflow/{path.name}", data)
        add("flow.py", flow.encode())
    return buffer.getvalue()


class Container:
    """One container: where it runs, what it is told, what became of it."""

    def __init__(self, folder: Path, server: Server) -> None:
        self.server = server
        self.cwd = folder / "container"
        self.store = folder / "store"
        self.cwd.mkdir()
        self.store.mkdir()
        self.termination = folder / "termination-log"
        self.variables: dict[str, str] = {}
        self.spec: dict[str, Any] = {}

    def prepare(self, body: str, change_extension: Any = None, **spec: Any) -> None:
        flow = textwrap.dedent(FLOW).replace("{body}", textwrap.indent(body, " " * 8).lstrip())
        data = archive(flow, change_extension)
        self.server.objects["code"] = data
        here = {"run": "1", "step": "_parameters", "tasks": [[0, 0, 0]]}
        self.spec = {
            "flow": "F",
            "run": "1",
            "step": "start",
            "task": 7,
            "attempt": 0,
            "max_user_code_retries": 0,
            "fallback": False,
            "previous_failure": None,
            "join": False,
            "inputs": [],
            "parameters": here,
            "foreach_stack": [],
            "origin_run": None,
            "store": {"kind": "local", "root": str(self.store)},
            "decorators": [],
            "user": "ada",
            "identity": "user:ada",
            "namespace": None,
            "tags": [],
            "expected_inputs": None,
            "max_num_splits": 100,
            **spec,
        }
        self.variables = {
            "PATH": os.environ["PATH"],
            "FERROFLOW_CODE_URL": self.server.url("code"),
            "FERROFLOW_CODE_SHA256": hashlib.sha256(gzip.decompress(data)).hexdigest(),
            "FERROFLOW_FLOW_FILE": "flow.py",
            "FERROFLOW_IMAGE": "lab/image:1",
            "FERROFLOW_LAYER": "kubernetes",
            "FERROFLOW_LEASE_KEY": "F/runs/1/lease",
            "FERROFLOW_LEASE_SECONDS": "3600",
            "FERROFLOW_LOG_PREFIX": LOG,
            "FERROFLOW_TASK_SPEC": json.dumps(self.spec),
            "FERROFLOW_TERMINATION_LOG": str(self.termination),
            "METAFLOW_RUNTIME_ENVIRONMENT": "kubernetes",
        }
        write_parameters(self.store, flow, self.cwd.parent)

    def start(self) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            [sys.executable, "-u", "-c", BOOTSTRAP],
            cwd=self.cwd,
            env=self.variables,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )

    def run(self, seconds: float = 60) -> tuple[int, str, str]:
        process = self.start()
        stdout, stderr = process.communicate(timeout=seconds)
        return process.returncode, stdout.decode(), stderr.decode()

    def message(self) -> dict[str, Any]:
        text = self.termination.read_bytes()
        assert len(text) <= 4096
        message: dict[str, Any] = json.loads(text)
        return message

    def log(self) -> list[tuple[str, str]]:
        """Stream and text of every chunk in the store."""
        data = b"".join(path.read_bytes() for path in sorted((self.store / LOG).glob("0*")))
        chunks = []
        while data:
            at, letter, length, rest = data.split(b" ", 3)
            assert abs(int(at) / 1000 - time.time()) < 600
            size = int(length)
            assert rest[size : size + 1] == b"\n"
            chunks.append((letter.decode(), rest[:size].decode()))
            data = rest[size + 1 :]
        return chunks

    def text(self, letter: str) -> str:
        return "".join(text for stream, text in self.log() if stream == letter)


def write_parameters(root: Path, flow: str, folder: Path) -> None:
    path = folder / "flow_for_parameters.py"
    path.write_text(flow)
    program = (
        "import sys, flow_for_parameters as f; from metaflow import _parameters as p;"
        "values, error = p.convert(f.F, {}, 'ada'); assert error is None, error;"
        "p.write(f.F, values, {'kind': 'local', 'root': sys.argv[1]}, 'F', '1')"
    )
    command = [sys.executable, "-c", program, str(root)]
    variables = {**os.environ, "PYTHONPATH": f"{MODULE.parent}{os.pathsep}{folder}"}
    subprocess.run(command, check=True, env=variables, cwd=folder)


@pytest.fixture
def container(tmp_path: Path, server: Server) -> Container:
    return Container(tmp_path, server)


def wait_for(condition: Any, seconds: float = 30) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "nothing happened"
        time.sleep(0.02)


def test_a_task_runs_as_it_would_on_the_users_machine(container: Container) -> None:
    given = {"COLOUR": "red", "YES": True, "NO": None}
    container.prepare(
        "print('hello from', current.pathspec, os.getcwd())\n"
        "print('to err', file=sys.stderr)\n"
        "print(sorted(n for n in os.environ if n.startswith('FERROFLOW')))\n"
        "print(os.environ['METAFLOW_RUNTIME_ENVIRONMENT'], os.environ['COLOUR'], sys.argv)\n"
        "print(os.environ['YES'], os.environ['NO'])\n"
        "self.x = self.alpha + 1",
        decorators=[{"name": "environment", "attributes": {"vars": given}}],
    )
    code, stdout, stderr = container.run()
    assert (code, stderr) == (0, "to err\n")
    lines = stdout.splitlines()
    assert lines[0] == f"hello from F/1/start/7 {container.cwd}/metaflow"
    assert "CODE" not in lines[1] and "TASK" not in lines[1]
    assert lines[2:4] == ["kubernetes red ['flow.py']", "True None"]
    message = container.message()
    assert message["exit"] == {"code": 0} and message["cause"] is None
    assert message["outcome"]["ok"] and message["outcome"]["transition"]["targets"] == ["end"]
    assert message["usage"]["peak_memory"] > 5_000_000
    assert container.text("o") == stdout and container.text("e") == stderr
    assert (container.store / "F/runs/1/start/7.0.pack").is_file()
    assert not list((container.store / LOG).glob("end"))


def test_failures_and_exit_codes_come_through(container: Container) -> None:
    container.prepare("raise ValueError('x' * 50_000 + 'Ω' * 5_000)")
    code, _, stderr = container.run()
    assert code == 1 and "ValueError" in stderr
    message = container.message()
    assert message["outcome"]["exception"]["type"] == "ValueError"
    assert message["outcome"]["exception"]["message"].startswith("xxxx")
    container.prepare("os._exit(42)")
    code, _, _ = container.run()
    assert code == 42
    assert (container.message()["outcome"], container.message()["exit"]) == (None, {"code": 42})
    container.prepare("os.kill(os.getpid(), 11)")
    code, _, _ = container.run()
    assert code == 139 and container.message()["exit"] == {"signal": 11}


def test_nothing_that_a_task_leaves_behind_survives(container: Container, tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    container.prepare(
        "import subprocess\n"
        f"child = subprocess.Popen(['sleep', '300'], start_new_session=True)\n"
        f"open({str(mark)!r}, 'w').write(str(child.pid))"
    )
    started = time.monotonic()
    assert container.run()[0] == 0
    assert time.monotonic() - started < 20
    assert not Path(f"/proc/{mark.read_text()}").exists()


def test_lines_are_in_the_store_while_the_task_runs(container: Container, tmp_path: Path) -> None:
    container.prepare("print('first')\nprint('half a', end='', flush=True)\ntime.sleep(60)")
    process = container.start()
    wait_for(lambda: (container.store / LOG).is_dir() and container.text("o") == "first\nhalf a")
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=20)
    assert process.returncode == 128 + signal.SIGTERM
    assert container.message()["cause"]["text"].startswith("killed by SIGTERM")


def test_many_lines_need_few_segments(container: Container) -> None:
    container.prepare("for n in range(30_000): print('line number', n)")
    assert container.run()[0] == 0
    segments = list((container.store / LOG).glob("0*"))
    assert len(segments) <= 1 + sum(each.stat().st_size for each in segments) // (128 << 10)
    assert container.text("o") == "".join(f"line number {n}\n" for n in range(30_000))


def test_an_expired_address_asks_for_another(container: Container, server: Server) -> None:
    container.prepare("pass")
    server.script = [(403, b"<Code>AccessDenied</Code>")]
    code, _, stderr = container.run()
    assert code == 122
    message = container.message()
    assert message["sign_again"] and "may not be fetched from 127.0.0.1" in stderr
    assert "secret" not in stderr + json.dumps(message)


def test_what_can_be_retried_is(container: Container, server: Server) -> None:
    container.prepare("pass")
    server.script = [(503, b"slow down"), (200, b"cut off")]
    assert container.run()[0] == 0
    assert server.asked == ["code"] * 3
    server.script = [(404, b"")]
    code, _, stderr = container.run()
    assert code == 121
    assert "the code package could not be fetched from 127.0.0.1" in stderr and "404" in stderr


def test_a_long_spec_is_fetched(container: Container, server: Server) -> None:
    container.prepare("print('here')", tags=["x" * 100] * 3_000)
    import base64
    import zlib

    text = container.variables.pop("FERROFLOW_TASK_SPEC").encode()
    for data in (text, base64.b64encode(zlib.compress(text))):
        server.objects["spec"] = data
        container.variables["FERROFLOW_TASK_SPEC_URL"] = server.url("spec")
        container.variables["FERROFLOW_TASK_SPEC_SHA256"] = hashlib.sha256(data).hexdigest()
        code, stdout, stderr = container.run()
        assert (code, stdout, stderr) == (0, "here\n", "")


def test_another_processor_is_told_within_seconds(container: Container) -> None:
    def for_arm(data: bytes) -> bytes:
        return data[:18] + (183).to_bytes(2, "little") + data[20:]

    container.prepare("pass", change_extension=for_arm)
    started = time.monotonic()
    code, _, stderr = container.run()
    assert time.monotonic() - started < 5
    assert code == 121
    machine = os.uname().machine
    assert stderr == (
        f"the image `lab/image:1` runs on {machine}, and the code package has an extension for "
        f"aarch64: start the run with an installation of ferroflow for {machine}, or choose nodes "
        "and an image for aarch64.\n"
    )
    assert container.message()["cause"] == {"kind": "image", "text": stderr[:-2]}


def test_a_broken_extension_is_told(container: Container) -> None:
    def newer(data: bytes) -> bytes:
        assert b"GLIBC_2." in data
        return data.replace(b"GLIBC_2.", b"GLIBC_9.")

    container.prepare("pass", change_extension=newer)
    code, _, stderr = container.run()
    assert code == 121
    assert "`lab/image:1`" in stderr and "cannot load the extension of the code package" in stderr
    assert "`GLIBC_9." in stderr


def test_an_old_python_is_told(container: Container) -> None:
    container.prepare("pass")
    old = BOOTSTRAP.replace("sys.version_info < (3, 11)", "sys.version_info < (3, 99)")
    command = [sys.executable, "-u", "-c", old]
    ended = subprocess.run(
        command, cwd=container.cwd, env=container.variables, capture_output=True, check=False
    )
    assert ended.returncode == 121
    assert b"the image `lab/image:1` has Python 3." in ended.stderr


def test_a_users_modules_do_not_shadow_ours(container: Container) -> None:
    container.prepare("print('fine')")
    (container.cwd / "json.py").write_text("raise ImportError('not this one')")
    assert container.run()[:2] == (0, "fine\n")


def test_a_folder_that_cannot_be_written_is_no_obstacle(container: Container) -> None:
    container.prepare("print(os.getcwd())")
    (container.cwd / "metaflow").write_text("a file in the way")
    code, stdout, stderr = container.run()
    assert (code, stderr) == (0, "") and "metaflow-" in stdout


def test_an_abandoned_run_stops_its_tasks(container: Container) -> None:
    container.prepare("time.sleep(60)")
    container.variables["FERROFLOW_LEASE_SECONDS"] = "2"
    lease = container.store / "F/runs/1/lease"
    lease.parent.mkdir(parents=True, exist_ok=True)
    process = container.start()
    for number in range(20):
        lease.write_text(f"renewal {number}")
        time.sleep(0.2)
        assert process.poll() is None
    process.communicate(timeout=20)
    message = container.message()
    assert message["cause"]["kind"] == "engine_lost"
    assert message["cause"]["text"].startswith("stopped: no engine has renewed the lease of run 1")


def test_a_hang_in_native_code_is_killed(container: Container) -> None:
    container.prepare("time.sleep(60)")
    container.variables["FERROFLOW_TIME_LIMIT"] = "-59"
    code, _, _ = container.run()
    assert code == 128 + signal.SIGKILL
    assert container.message()["cause"]["kind"] == "timed_out"


def test_without_a_termination_log_the_store_has_the_ending(container: Container) -> None:
    container.prepare("print('x')")
    container.variables["FERROFLOW_TERMINATION_LOG"] = "/proc/nowhere"
    assert container.run()[0] == 0
    ending = json.loads((container.store / LOG / "end").read_text())
    assert ending["outcome"]["ok"] and ending["exit"] == {"code": 0}


class Flaky:
    """A store that refuses while it is told to."""

    def __init__(self) -> None:
        self.objects: dict[str, bytes] = {}
        self.refuses = False
        self.writes = 0

    def put(self, key: str, data: bytes) -> None:
        if self.refuses:
            raise OSError("the store is away")
        self.writes += 1
        self.objects[key] = data

    def get(self, key: str) -> bytes | None:
        return self.objects.get(key)


def test_a_store_that_is_away_loses_nothing_when_it_comes_back() -> None:
    from metaflow import _remote_log

    store = Flaky()
    lease = _remote_log.Lease(store, "lease", 3600)
    read, write = os.pipe()
    shipper = _remote_log.Shipper(store, "log/", lease, write)
    shipper.start()
    store.refuses = True
    shipper.add("o", b"one\n")
    time.sleep(0.3)
    shipper.add("e", b"two\n")
    assert store.objects == {}
    store.refuses = False
    assert shipper.finish({"outcome": None}) is None
    (data,) = store.objects.values()
    chunks = [each.split(b" ", 1)[1] for each in data.split(b"\n\n")]
    assert chunks == [b"o 4 one", b"e 4 two", b'x 17 {"outcome": null}\n']
    for descriptor in (read, write):
        os.close(descriptor)


def memory_of(folder: Path) -> Any:
    from metaflow import _remote_ending

    (folder / "memory.events").write_text("low 0\noom 0\noom_kill 1\n")
    (folder / "memory.max").write_text(f"{512 << 20}\n")
    (folder / "memory.peak").write_text(f"{511 << 20}\n")
    group = (str(folder / "memory.events"), "memory.max", "memory.peak")
    return _remote_ending.Memory((group,))


def test_the_kernels_kill_is_told_with_what_was_asked(tmp_path: Path) -> None:
    from metaflow import _remote_ending

    memory = memory_of(tmp_path)
    asked = [{"name": "kubernetes", "attributes": {"memory": 500}}]
    facts = _remote_ending.Facts({"run": "1", "decorators": asked}, "kubernetes", memory)
    facts.ended(signal.SIGKILL, __import__("resource").getrusage(0))
    facts.note_leftovers()
    assert facts.message()["cause"] is None, "nothing was killed since the start"
    (tmp_path / "memory.events").write_text("oom_kill 2\n")
    facts.note_leftovers()
    assert facts.message()["cause"] == {
        "kind": "out_of_memory",
        "text": "out of memory, the kernel killed the task: it used up to 511.0 MiB, and its "
        "container may use 512.0 MiB; the step asks for 500 MB; ask for more with "
        "`@kubernetes(memory=…)` or `@resources(memory=…)`",
    }


@pytest.mark.parametrize("letter", ["x", "Ω", '"', "\n", "🦀"])
def test_a_termination_message_always_fits(letter: str) -> None:
    from metaflow import _remote_ending

    long = letter * 20_000
    exception = {"type": long, "message": long, "traceback": long}
    outcome = {"ok": False, "exception": exception, "imports": ["package"] * 3_000}
    message = {
        "outcome": outcome,
        "exit": {"code": 1},
        "usage": {"cpu_seconds": 1.5, "peak_memory": 5},
        "cause": {"kind": "out_of_memory", "text": long},
        "metadata": [("name", long)] * 500,
    }
    data = _remote_ending.fitted(message)
    assert len(data) <= 4096
    with contextlib.suppress(KeyError):
        assert json.loads(data)["outcome"]["exception"]["type"].startswith(letter)
    assert json.loads(data)["exit"] == {"code": 1}


def test_a_full_disk_is_told() -> None:
    from metaflow import _remote_ending

    facts = _remote_ending.Facts({"run": "1", "decorators": []}, "kubernetes")
    text = "[Errno 28] No space left on device: '/data/x'"
    exception = {"type": "OSError", "message": text}
    facts.hear({"type": "outcome", "outcome": {"ok": False, "exception": exception}})
    facts.ended(1 << 8, __import__("resource").getrusage(0))
    assert facts.message()["cause"]["text"].startswith("the container's disk is full")


def test_a_spot_instance_that_goes_takes_its_task_along(
    container: Container, server: Server
) -> None:
    """Not the user's failure: the run starts it again elsewhere."""
    container.prepare("time.sleep(300)")
    container.variables["AWS_EC2_METADATA_SERVICE_ENDPOINT"] = server.url("").split("/?")[0]
    server.objects["latest/meta-data/instance-life-cycle"] = b"spot"
    server.objects["latest/meta-data/spot/termination-time"] = b"2026-11-22T08:00:00Z"
    code, _, _ = container.run()
    assert code == 128 + signal.SIGTERM
    message = container.message()
    assert message["cause"] == {
        "kind": "spot_reclaimed",
        "text": "AWS takes its Spot instance back at 2026-11-22T08:00:00Z, and the task was told "
        "to stop (SIGTERM)",
    }
    assert ["spot-termination-time", "2026-11-22T08:00:00Z"] in message["metadata"]


def test_a_task_that_floods_waits_for_the_store_and_loses_nothing(container: Container) -> None:
    container.prepare(
        "line = 'x' * 99\n"
        "for n in range(3_000): sys.stdout.write(f'{line}\\n' * 100)\n"
        "print('over')"
    )
    process = subprocess.Popen(
        [sys.executable, "-u", "-c", BOOTSTRAP],
        cwd=container.cwd,
        env=container.variables,
        stdout=subprocess.DEVNULL,
    )
    assert process.wait(120) == 0
    assert "log_is_short" not in container.message()
    text = container.text("o")
    assert len(text) == 30_000_000 + 5 and text.endswith("x\nover\n")
