# What a task of the conformance suite does, by its step; see kubernetes_conformance.rs.
import json
import os
import signal
import sys
import time

step, task = sys.argv[1:]


def say(*lines):
    data = "".join(f"{line}\n" for line in lines).encode()
    while data:
        data = data[os.write(1, data) :]


def end(code, ok):
    outcome = {"ok": ok, "success": ok}
    usage = {"cpu_seconds": 0.0, "peak_memory": 0}
    with open("/dev/termination-log", "w") as log:
        log.write(json.dumps({"outcome": outcome, "exit": {"code": code}, "usage": usage}))
    os._exit(code)


# Process 1 gets no signal that it does not handle.
signal.signal(signal.SIGTERM, lambda *_: os._exit(143))
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
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
say("o asleep")
time.sleep(600)
