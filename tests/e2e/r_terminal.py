"""An interactive R in a pseudo-terminal, like the console of RStudio: typed lines, shown lines."""

from __future__ import annotations

import os
import pty
import re
import select
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from harness import environment, kill_marked, r_library

PATIENCE = 120.0


class Terminal:
    def __init__(self, folder: Path, env: dict[str, str]) -> None:
        ours, theirs = pty.openpty()
        variables = {**environment(folder, env), "R_LIBS": r_library(), "TERM": "dumb"}
        self._ours = ours
        self.text = ""
        self._asked = 0
        self.process = subprocess.Popen(
            ["setsid", "--ctty", "R", "--no-save", "--no-restore", "--no-readline", "-q"],
            cwd=folder,
            env=variables,
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
        )
        os.close(theirs)

    def type(self, code: str) -> None:
        os.write(self._ours, code.encode())

    def wait_for(self, pattern: str, since: int = 0) -> re.Match[str]:
        """Waits until what was shown since then matches."""
        end = time.monotonic() + PATIENCE
        while not (found := re.search(pattern, self.text[since:])):
            assert time.monotonic() < end, f"no `{pattern}` in:\n{self.text[since:]}"
            if select.select([self._ours], [], [], 1.0)[0]:
                data = os.read(self._ours, 1 << 16)
                self.text += data.decode(errors="replace").replace("\r", "")
        return found

    def run(self, code: str) -> str:
        """What an expression shows until it is done."""
        self._asked += 1
        since = len(self.text)
        # The line as it is typed must not look like what it prints.
        self.type(f"{code}; cat('done', {self._asked}, '\\n')\n")
        self.wait_for(rf"(?m)^(> )?done {self._asked} \n", since)
        return self.text[since:].partition("\n")[2]

    def status(self, call: str) -> tuple[int, str]:
        """The exit code that a call of run() returns, and what it shows."""
        shown = self.run(f"code <- {call}; cat('code', code, '\\n')")
        found = re.search(r"(?m)^(?:> )?code (\d+) \n", shown)
        assert found, shown
        return int(found[1]), shown

    def interrupt(self) -> None:
        self.type("\x03")

    def close(self) -> None:
        os.kill(self.process.pid, signal.SIGKILL)
        self.process.wait()
        os.close(self._ours)


@contextmanager
def r_terminal(folder: Path, env: dict[str, str]) -> Iterator[Terminal]:
    terminal = Terminal(folder, env)
    try:
        terminal.wait_for("> ")
        terminal.run("library(metaflow)")
        yield terminal
    finally:
        terminal.close()
        kill_marked(folder)
