# What a task of the conformance suite does, by its step; see remote_conformance.rs. It stands for
# the supervisor of a container too: what it prints and how it ends goes to the suite's own address.
import json
import os
import signal
import socket
import time

step, task, attempt, address = os.environ["TASK"].split()
host, _, port = address.rpartition(":")
# A supervisor kills what has not ended so long after SIGTERM.
PATIENCE = 3.5
told = socket.create_connection((host, int(port)), 30)


def say(*lines):
    told.sendall("".join(f"{line}\n" for line in lines).encode())


def end(code, ok):
    outcome = {"ok": ok, "success": ok}
    usage = {"cpu_seconds": 0.0, "peak_memory": 0}
    text = json.dumps({"outcome": outcome, "exit": {"code": code}, "usage": usage})
    say(f"x {text}")
    if os.path.exists("/dev/termination-log"):
        with open("/dev/termination-log", "w") as log:
            log.write(text)
    os._exit(code)


def give_up(*_):
    os._exit(137)


def outlast(*_):
    signal.signal(signal.SIGALRM, give_up)
    signal.setitimer(signal.ITIMER_REAL, PATIENCE)


# Process 1 gets no signal that it does not handle.
signal.signal(signal.SIGTERM, lambda *_: os._exit(143))
say(f"{task} {attempt}")
if step == "quick":
    say(f"o out {task}", f"e err {task}")
    end(0, True)
elif step == "loud":
    for number in range(10_000):
        say(f"o out {number}", f"e err {number}")
    end(0, True)
elif step == "fails":
    end(1, False)
elif step == "dies":
    os._exit(3)
if step == "stubborn":
    signal.signal(signal.SIGTERM, outlast)
say("o asleep")
over = time.monotonic() + 600
while time.monotonic() < over:
    time.sleep(1)
