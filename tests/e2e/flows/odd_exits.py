"""Ways to leave a step; the parameter chooses."""

import os
import signal
import sys

from metaflow import FlowSpec, Parameter, step


class OddExits(FlowSpec):
    way = Parameter("way", default="none")

    @step
    def start(self):
        print("before")
        ways = {
            "none": lambda: None,
            "exit0": lambda: sys.exit(0),
            "exit4": lambda: sys.exit(4),
            "exit-text": lambda: sys.exit("a sentence"),
            "_exit3": lambda: os._exit(3),
            "_exit0": lambda: os._exit(0),
            "_exit202": lambda: os._exit(202),
            "abort": os.abort,
            "segfault": lambda: os.kill(os.getpid(), signal.SIGSEGV),
            "kill": lambda: os.kill(os.getpid(), signal.SIGKILL),
            "term": lambda: os.kill(os.getpid(), signal.SIGTERM),
            "interrupt": lambda: os.kill(os.getpid(), signal.SIGINT),
            "raise": lambda: [].pop(),
            "close-stdout": lambda: os.close(1),
            "stop-iteration": lambda: next(iter([])),
            "keyboard": self.keyboard,
            "recursion": self.recurse,
        }
        ways[self.way]()
        self.next(self.end)

    def keyboard(self):
        raise KeyboardInterrupt

    def recurse(self):
        return self.recurse()

    @step
    def end(self):
        print("end")


if __name__ == "__main__":
    OddExits()
