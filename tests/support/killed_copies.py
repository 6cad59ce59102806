"""Makes backups and restores that kill themselves at their n-th step: one process for each, forked from this one.

A line on stdin is a JSON list `[operation, n, from, to]`; the answer is the exit status of the process and its last
step. Steps are the named ones of the code and each progress that it tells.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path

from roost.store.backup import back_up
from roost.store.restore import restore


class Steps:
    """Counts steps, tells each, and kills the process at the n-th."""

    def __init__(self, most: int, pipe: int) -> None:
        self._left = most
        self._pipe = pipe

    def at(self, point: str) -> None:
        os.write(self._pipe, f"{point}\n".encode())
        self._left -= 1
        if self._left == 0:
            os.kill(os.getpid(), signal.SIGKILL)

    def progress(self, what: str, done: int, _total: int) -> None:
        self.at(f"{what} {done}")


def main() -> None:
    """Serve requests until stdin ends."""
    for line in sys.stdin:
        operation, most, source, to = json.loads(line)
        reading, writing = os.pipe()
        child = os.fork()
        if child == 0:
            steps = Steps(most, writing)
            if operation == "back_up":
                back_up(Path(source), Path(to), with_secret=True, progress=steps.progress, at=steps.at)
            else:
                replace = operation == "replace"
                restore(Path(source), Path(to), replace=replace, progress=steps.progress, at=steps.at)
            os._exit(0)
        os.close(writing)
        with os.fdopen(reading) as told:
            steps_taken = told.read().splitlines()
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        print(json.dumps([status, steps_taken[-1]]), flush=True)


if __name__ == "__main__":
    main()
