"""A flow that looks at everything a fresh process and a fork could differ in, and prints it as facts."""

import asyncio
import atexit
import gc
import json
import locale
import logging
import multiprocessing
import os
import random
import resource
import signal
import subprocess
import sys
import tempfile
import threading
import time
import warnings
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor

from metaflow import FlowSpec, Parameter, environment, step

COUNTER = {"value": 0}
os.environ["SET_AT_IMPORT"] = "yes"
LOG = logging.getLogger("odd")
logging.basicConfig(stream=sys.stdout, format="LOG %(levelname)s %(message)s", level=logging.INFO)
OPENED_AT_IMPORT = open(os.environ["ODD_FILE"], "a")  # noqa: SIM115
warnings.filterwarnings("ignore", category=UserWarning)
sys.setrecursionlimit(1234)
LOCAL = threading.local()
LOCAL.value = "set at import"


@atexit.register
def at_exit_of_import():
    print("FACT atexit-import", COUNTER["value"], flush=True)


def fact(name, *values):
    print("FACT", name, *values)


def square(x):
    return x * x


def child_descriptors():
    listing = subprocess.run(["ls", "/proc/self/fd"], capture_output=True, text=True, check=True)
    return sorted(int(name) for name in listing.stdout.split())


class OddFacts(FlowSpec):
    number = Parameter("number", default=3)

    def facts(self):
        fact("module-counter", COUNTER["value"])
        fact("set-at-import", os.environ.get("SET_AT_IMPORT"))
        fact("set-in-task", os.environ.get("SET_IN_TASK"))
        fact("metaflow-environment", sorted(k for k in os.environ if k.startswith(("METAFLOW_", "FERROFLOW_", "MF_"))))
        fact("cwd", os.getcwd())
        fact("imported-here-only", "wave" in sys.modules)
        fact("argv", [os.path.basename(a) for a in sys.argv[:1]])
        fact("path", json.dumps(sys.path))
        fact("main", __name__, os.path.basename(__file__), sys.modules["__main__"].__name__)
        fact("flags", str(sys.flags))
        fact("umask", os.umask(0o22))
        fact("limits", resource.getrlimit(resource.RLIMIT_NOFILE), resource.getrlimit(resource.RLIMIT_CORE))
        fact("stdin", sys.stdin.read() == "", sys.stdin.isatty())
        fact("stdout", sys.stdout.encoding, sys.stdout.errors, sys.stdout.isatty(), sys.stdout.fileno(), sys.stdout.name)
        fact("stderr", sys.stderr.encoding, sys.stderr.errors, sys.stderr.isatty(), sys.stderr.fileno())
        fact("same-streams", sys.stdout is sys.__stdout__, sys.stderr is sys.__stderr__)
        names = ["SIGINT", "SIGTERM", "SIGHUP", "SIGCHLD", "SIGPIPE", "SIGUSR1", "SIGALRM", "SIGQUIT"]
        fact("handlers", [str(signal.getsignal(getattr(signal, name))) for name in names])
        fact("mask", sorted(str(s) for s in signal.pthread_sigmask(signal.SIG_BLOCK, [])))
        fact("wakeup", signal.set_wakeup_fd(-1))
        fact("threads", threading.active_count(), threading.current_thread() is threading.main_thread())
        fact("thread-name", threading.current_thread().name, multiprocessing.current_process().name)
        fact("thread-local", getattr(LOCAL, "value", None))
        fact("group-leader", os.getpgid(0) == os.getpid())
        fact("locale", locale.setlocale(locale.LC_ALL))
        fact("gc", gc.isenabled(), gc.get_threshold())
        fact("recursion", sys.getrecursionlimit())
        fact("trace", sys.gettrace(), sys.getprofile(), sys.excepthook is sys.__excepthook__)
        fact("child-descriptors", child_descriptors())
        fact("tempdir", tempfile.gettempdir())
        fact("nice", os.nice(0))
        fact("start-method", multiprocessing.get_start_method())
        fact("parameter", self.number)

    @step
    def start(self):
        COUNTER["value"] += 1
        os.environ["SET_IN_TASK"] = "leaks"
        os.chdir("/")
        import wave

        fact("wave", wave.__name__)
        self.items = [1, 2]
        self.next(self.look, foreach="items")

    @environment(vars={"FROM_DECORATOR": "1"})
    @step
    def look(self):
        fact("from-decorator", os.environ.get("FROM_DECORATOR"))
        self.facts()
        self.next(self.work, )

    @step
    def work(self):
        fact("from-decorator-elsewhere", os.environ.get("FROM_DECORATOR"))
        fact("asyncio", asyncio.run(self.coroutine()))
        with multiprocessing.Pool(2) as pool:
            fact("pool", pool.map(square, range(5)))
        with ProcessPoolExecutor(2) as pool:
            fact("process-executor", list(pool.map(square, range(5))))
        with ThreadPoolExecutor(2) as pool:
            fact("thread-executor", list(pool.map(square, range(5))))
        fact("subprocess", subprocess.run(["echo", "hi"], capture_output=True, text=True).stdout.strip())
        LOG.info("logged")
        print("to stderr", file=sys.stderr)
        OPENED_AT_IMPORT.write(f"import-file {self.index}\n")
        self.where = tempfile.mktemp()
        os.environ["SET_IN_TASK"] = "leaks"
        COUNTER["value"] += 10
        self.next(self.join)

    async def coroutine(self):
        await asyncio.sleep(0)
        return "ran"

    @step
    def join(self, inputs):
        self.facts()
        fact("temp-names-differ", len({i.where for i in inputs}) == 2)
        self.next(self.end)

    @step
    def end(self):
        def late():
            time.sleep(0.2)
            print("FACT late-thread printed")

        def daemon():
            time.sleep(60)

        threading.Thread(target=late).start()
        threading.Thread(target=daemon, daemon=True).start()
        kept = open(os.environ["ODD_FILE"] + ".end", "w")  # noqa: SIM115
        kept.write("written at exit")
        globals()["KEPT"] = kept
        atexit.register(lambda: print("FACT atexit-step"))
        fact("random-range", 0 <= random.random() < 1)
        print("FACT partial-line", end="")


if __name__ == "__main__":
    OddFacts()
