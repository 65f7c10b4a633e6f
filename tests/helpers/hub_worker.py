"""
Runs `python -m w2s_hf.publish` in forks of one process with its imports done, which saves three seconds per run. The
client reads the address of the Hub when it is imported, so one process serves one Hub.
"""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path


class HubWorker:
    """The process, with the environment of a Hub."""

    def __init__(self, environment: dict[str, str]):
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        self._process = subprocess.Popen([sys.executable, __file__], env={**os.environ, **environment}, **pipes)

    def publish(self, *argv, **environment) -> tuple[int, str]:
        """Returns the exit code and the output on stderr."""
        with tempfile.NamedTemporaryFile("r") as stderr:
            job = {"argv": list(map(str, argv)), "environment": environment, "stderr": stderr.name}
            self._process.stdin.write(json.dumps(job) + "\n")
            self._process.stdin.flush()
            return int(self._process.stdout.readline()), Path(stderr.name).read_text()

    def close(self) -> None:
        self._process.stdin.close()
        self._process.wait()
        self._process.stdout.close()


def _work() -> None:
    from w2s_hf import hub
    from w2s_hf.publish import main

    hub._PAUSES = (0.0, 0.1)  # seconds between tries
    for line in sys.stdin:
        job = json.loads(line)
        child = os.fork()
        if child == 0:
            os.dup2(os.open(job["stderr"], os.O_WRONLY | os.O_APPEND), 2)
            os.environ.update(job["environment"])
            main(job["argv"])
            sys.exit()
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)


if __name__ == "__main__":
    _work()
