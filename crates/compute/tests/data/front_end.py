"""A front end by script: speaks the front-end protocol on descriptor 0 and starts tasks that behave
as the names of their steps say. The steps of the conformance suite come first, then those that
test the local layer alone. Nothing here is part of the product.
"""

import array
import contextlib
import ctypes
import json
import os
import select
import signal
import socket
import struct
import sys
import time

_prctl = ctypes.CDLL(None).prctl


class Connection:
    def __init__(self, sock):
        self.socket, self.buffer, self.descriptors = sock, b"", []

    def send(self, message, raw=None):
        body = json.dumps(message).encode() if raw is None else raw
        self.socket.sendall(struct.pack("<I", len(body)) + body)

    def receive(self):
        while not self.pending():
            data, ancillary, _, _ = self.socket.recvmsg(1 << 16, socket.CMSG_SPACE(64))
            for _, _, passed in ancillary:
                fds = array.array("i")
                fds.frombytes(passed[: len(passed) // 4 * 4])
                self.descriptors.extend(fds)
            if not data:
                raise EOFError
            self.buffer += data
        length = struct.unpack("<I", self.buffer[:4])[0]
        message = json.loads(self.buffer[4 : 4 + length])
        self.buffer = self.buffer[4 + length :]
        count = {"open_zygote": 1, "task": 3}.get(message.get("type"), 0)
        fds, self.descriptors = self.descriptors[:count], self.descriptors[count:]
        return message, fds

    def pending(self):
        if len(self.buffer) < 4:
            return False
        return len(self.buffer) >= 4 + struct.unpack("<I", self.buffer[:4])[0]


def children(pid):
    with open(f"/proc/{pid}/task/{pid}/children") as listing:
        return [int(word) for word in listing.read().split()]


def kill_descendants():
    while True:
        try:
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        except ChildProcessError:
            return
        for pid in children(os.getpid()):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.001)


def serve_front_end():
    _prctl(36, 1)
    server = Connection(socket.socket(fileno=0))
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    flow = {"name": "ConformanceFlow", "file": "/f.py", "steps": []}
    server.send(
        {
            "protocol": 1,
            "language": "python",
            "language_version": "3",
            "executable": sys.executable,
            "script": "f.py",
            "arguments": ["run"],
            "pid": os.getpid(),
            "flow": flow,
        }
    )
    try:
        while True:
            message, fds = server.receive()
            if message["type"] == "open_zygote":
                if os.fork() == 0:
                    server.socket.close()
                    serve_zygote(message, fds[0])
                os.close(fds[0])
            else:
                server.send({"id": message["id"], "ok": message})
    except EOFError:
        kill_descendants()
        os._exit(0)


def serve_zygote(message, fd):
    """Counts its opens in a file if the environment names one, so that later ones may differ."""
    settings, step = message["settings"], message["step"]
    environment = settings["environment"]
    engine = Connection(socket.socket(fileno=fd))
    note(environment, f"open spawn={settings['spawn']} learned={settings['learned']}")
    _prctl(1, signal.SIGKILL)
    if step == "stillborn":
        os._exit(1)
    reason = "it says so" if step == "spawned" else None
    engine.send({"type": "ready", "pid": os.getpid(), "spawn_reason": reason})
    if step == "nonsense":
        engine.send(None, raw=b"this is not JSON")
    reading, writing = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(writing)
    by_pid = {}
    try:
        while True:
            ready = [] if engine.pending() else select.select([engine.socket, reading], [], [])[0]
            if reading in ready:
                os.read(reading, 4096)
                reap(engine, by_pid)
            if engine.socket in ready or engine.pending():
                handle(engine, by_pid, environment, *engine.receive())
    except (EOFError, ConnectionResetError, BrokenPipeError):
        for pid in by_pid:
            os.kill(pid, signal.SIGKILL)
        os._exit(0)


def note(environment, text):
    if "NOTES" in environment:
        with open(environment["NOTES"], "a") as notes:
            notes.write(f"{time.monotonic():.4f} {text}\n")


def reap(engine, by_pid):
    while True:
        try:
            pid, status, usage = os.wait4(-1, os.WNOHANG)
        except ChildProcessError:
            return
        if pid == 0:
            return
        attempt = by_pid.pop(pid, None)
        if attempt is None:
            continue
        code = os.waitstatus_to_exitcode(status)
        engine.send(
            {
                "type": "exited",
                "attempt": attempt,
                "leftover": 0,
                "exit": {"signal": -code} if code < 0 else {"code": code},
                "usage": {
                    "cpu_seconds": usage.ru_utime + usage.ru_stime,
                    "peak_memory": usage.ru_maxrss * 1024,
                },
            }
        )


def handle(engine, by_pid, environment, message, fds):
    if message["type"] == "task":
        attempt, spec = message["attempt"], message["spec"]
        if spec["step"] == "unstartable":
            for fd in fds:
                os.close(fd)
            failed = {"type": "start_failed", "attempt": attempt}
            engine.send({**failed, "message": "no more processes"})
            return
        zygote = os.getpid()
        pid = os.fork()
        if pid == 0:
            os.setpgid(0, 0)
            _prctl(1, signal.SIGKILL)
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            engine.socket.close()
            be_task(spec, environment, zygote, *fds)
        for fd in fds:
            os.close(fd)
        by_pid[pid] = attempt
        engine.send({"type": "started", "attempt": attempt, "pid": pid})
    elif message["type"] == "signal":
        for pid, attempt in by_pid.items():
            if attempt == message["attempt"]:
                try:
                    os.killpg(pid, message["signal"])
                except ProcessLookupError:
                    os.kill(pid, message["signal"])
    elif message["type"] == "learn":
        note(environment, f"learn {message['packages']}")
        time.sleep(float(environment.get("LEARNING", "0")))
        if "explosive" in message["packages"]:
            os._exit(1)
        engine.send({"type": "learned", "packages": message["packages"], "refused": []})


def be_task(spec, environment, zygote, stdout, stderr, control):
    os.dup2(stdout, 1)
    os.dup2(stderr, 2)
    os.close(stdout)
    os.close(stderr)
    note(environment, f"task {spec['task']}")
    code = 1
    try:
        code = TASKS[spec["step"]](spec, Connection(socket.socket(fileno=control)), zygote)
    finally:
        os._exit(code)


def say(text, stream=1):
    data = (text + "\n").encode()
    while data:
        data = data[os.write(stream, data) :]


def outcome(control, ok=True, **more):
    control.send({"type": "outcome", "outcome": {"ok": ok, "success": ok, **more}})


def quick(spec, control, zygote):
    say(f"out {spec['task']}")
    say(f"err {spec['task']}", 2)
    outcome(control)
    return 0


def silent(spec, control, zygote):
    outcome(control)
    return 0


def loud(spec, control, zygote):
    for start in range(0, 10_000, 100):
        say("\n".join(f"out {number}" for number in range(start, start + 100)))
        say("\n".join(f"err {number}" for number in range(start, start + 100)), 2)
    outcome(control)
    return 0


def fails(spec, control, zygote):
    outcome(control, ok=False, exception={"type": "ValueError", "message": "no"})
    return 1


def dies(spec, control, zygote):
    return 3


def sleeps(spec, control, zygote):
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    say("asleep")
    time.sleep(600)
    return 0


def stubborn(spec, control, zygote):
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    return sleeps_on("asleep")


def sleeps_on(text):
    say(text)
    time.sleep(600)
    return 0


def flood(spec, control, zygote):
    block = b"0123456789abcdef" * 63 + b"0123456789abcde\n"
    for _ in range(1024 * 100):
        os.write(1, block)
    outcome(control)
    return 0


def background(spec, control, zygote):
    """Leaves a process that prints later, on the task's own stdout."""
    if os.fork() == 0:
        os.setsid()
        time.sleep(2)
        say("late 1")
        say("late 2")
        os._exit(0)
    say("early")
    os.write(1, b"unfinished")
    outcome(control)
    return 0


def daemon(spec, control, zygote):
    """Leaves two processes that nothing ties to the task."""
    reading, writing = os.pipe()
    for _ in range(2):
        if os.fork() == 0:
            os.setsid()
            if os.fork() == 0:
                _prctl(1, 0)
                control.socket.close()
                null = os.open("/dev/null", os.O_RDWR)
                for stream in range(3):
                    os.dup2(null, stream)
                with open("/proc/self/comm", "w") as name:
                    name.write("left_behind")
                os.write(writing, b".")
                time.sleep(600)
            os._exit(0)
    for _ in range(2):
        os.wait()
        os.read(reading, 1)
    outcome(control)
    return 0


def restless(spec, control, zygote):
    """A few processes that change their ids all the time: one chain that forks and leaves, and
    parents whose children come and go. Never more than a handful; ends by itself."""
    end = time.time() + 10
    for chain in (True, False, False):
        if os.fork() == 0:
            os.setsid()
            _prctl(1, 0)
            control.socket.close()
            while time.time() < end:
                if chain and os.fork():
                    os._exit(0)
                if not chain:
                    if os.fork() == 0:
                        os._exit(0)
                    os.wait()
            os._exit(0)
    time.sleep(0.2)
    return sleeps_on("restless")


def closed(spec, control, zygote):
    say("before")
    os.close(1)
    os.close(2)
    time.sleep(0.05)
    outcome(control)
    return 0


def garbage(spec, control, zygote):
    control.send(None, raw=b"gar\x07bage")
    control.socket.sendall(b"x" * 1_000_000)
    return 0


def garbage_after(spec, control, zygote):
    outcome(control)
    control.socket.sendall(b"\xff\xff\xff\xff and on")
    return 0


def crashes(spec, control, zygote):
    outcome(control)
    os.kill(os.getpid(), signal.SIGSEGV)


def killed(spec, control, zygote):
    os.kill(os.getpid(), signal.SIGKILL)


def imports(spec, control, zygote):
    if spec["task"] == 1:
        time.sleep(0.05)
        control.send({"type": "imported", "packages": ["numpy"]})
        time.sleep(1.5)
    outcome(control, imports=["numpy"])
    return 0


def explodes(spec, control, zygote):
    outcome(control, imports=["explosive"])
    return 0


def tells(spec, control, zygote):
    control.send({"type": "metadata", "name": "colour", "value": "blue"})
    outcome(control)
    return 0


def takes_zygote_along(spec, control, zygote):
    say("going")
    os.kill(zygote, signal.SIGKILL)
    time.sleep(600)


def takes_memory(spec, control, zygote):
    memory = bytearray(64 << 20)
    memory[::4096] = b"x" * len(memory[::4096])
    say("full")
    time.sleep(0.3)
    outcome(control)
    return 0


def spawned(spec, control, zygote):
    again, _ = control.receive()
    say(f"read {again['step']} {again['task']}")
    outcome(control)
    return 0


def progress(spec, control, zygote):
    os.write(2, b"\r 0%")
    os.write(2, b"\r100%\nlong " + b"x" * (3 << 20) + b"\r\nlast")
    outcome(control)
    return 0


TASKS = {
    function.__name__: function
    for function in (
        quick,
        silent,
        loud,
        fails,
        dies,
        sleeps,
        stubborn,
        flood,
        background,
        daemon,
        restless,
        closed,
        garbage,
        garbage_after,
        crashes,
        killed,
        imports,
        explodes,
        tells,
        takes_zygote_along,
        takes_memory,
        spawned,
        progress,
    )
}

if __name__ == "__main__":
    serve_front_end()
