"""Runs recipes as users do: in a new process, in a fork of a process with its imports done, or in this process."""

import gc
import io
import json
import logging
import multiprocessing
import os
import runpy
import signal
import socket
import subprocess
import sys
import tempfile
import time
from contextlib import redirect_stderr, redirect_stdout
from multiprocessing.process import BaseProcess
from pathlib import Path
from types import SimpleNamespace

import pytest

ROOT = Path(__file__).parents[2]
# Fixtures that take more than five seconds. Tests that use one are marked as slow.
WHOLE_RUNS = {"analysed", "climbed", "finished", "pipeline", "pushed", "swept"}
# Enough pretraining to compare runs, but not for a weak-to-strong effect.
SMALL = "--demo_documents 1600 --n_train 160 --n_weak 96 --n_validation 40 --n_test 120".split()
# The smallest run with all steps. The second step of a training has half a batch.
TINY = "--demo_documents 1600 --n_train 48 --n_weak 48 --n_validation 16 --n_test 40 --max_steps 3".split()

# One server process has the imports of the recipes done, and scripts start in its forks. They have the hash seed of
# the server, not that of `recipe` or `recipe_here`, so comparisons must not depend on the order of sets.
_SERVER = multiprocessing.get_context("forkserver")
_SERVER.set_forkserver_preload(
    ["pytest", *(f"w2s_hf.experiments.{name}" for name in ("cli", "chess", "classification", "reward"))]
)


def recipe(*options, cache, name="boolq.py", launcher=(), cwd=None, **environment):
    command = [sys.executable, *launcher, str(ROOT / "recipes" / name), *map(str, options)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "W2S_HF_CACHE": str(cache), "COLUMNS": "120", **environment}
    return subprocess.run(command, capture_output=True, text=True, timeout=400, env=environment, cwd=cwd)


def start(script: Path, *options, log: Path, **environment) -> BaseProcess:
    """
    Starts a script in a process with its imports done, which saves ten seconds. The files `stdout` and `stderr` are in
    `log`. The method `kill` of the result sends SIGKILL.
    """
    log.mkdir(exist_ok=True)
    for name in ("stdout", "stderr"):
        (log / name).touch()
    argv = [str(script), *map(str, options)]
    process = _SERVER.Process(target=_run_script, args=(argv, {**os.environ, **environment}, log), daemon=True)
    process.start()
    return process


def _run_script(argv: list[str], environment: dict[str, str], log: Path) -> None:
    for number, name in ((1, "stdout"), (2, "stderr")):
        os.dup2(os.open(log / name, os.O_WRONLY | os.O_APPEND), number)
    os.environ.clear()
    os.environ.update(environment)
    sys.argv = argv
    gc.freeze()  # as the fixture `imported_modules_are_no_garbage`: saves half a second per garbage collection
    # Background jobs of a shell ignore interrupts, and so do their children.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    runpy.run_path(argv[0], run_name="__main__")


def forked(script: Path, *options, n_ranks=1, **environment) -> SimpleNamespace:
    """
    Runs a script by `start` and returns its exit code and output. Several ranks get the environment variables of
    torchrun.
    """
    ranks = [{}]
    if n_ranks > 1:
        with socket.create_server(("127.0.0.1", 0)) as free:
            shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1])}
        shared |= {"WORLD_SIZE": str(n_ranks), "LOCAL_WORLD_SIZE": str(n_ranks), "GLOO_SOCKET_IFNAME": "lo"}
        ranks = [{"RANK": str(rank), "LOCAL_RANK": str(rank), **shared} for rank in range(n_ranks)]
    with tempfile.TemporaryDirectory() as log:
        processes = [start(script, *options, log=Path(log), **environment, **rank) for rank in ranks]
        deadline = time.monotonic() + 400
        while any(process.is_alive() for process in processes) and time.monotonic() < deadline:
            if any(process.exitcode for process in processes):
                break  # the other ranks would wait for the failed one
            time.sleep(0.01)
        for process in processes:
            process.kill()
            process.join()
        stdout, stderr = ((Path(log) / name).read_text() for name in ("stdout", "stderr"))
    returncode = max(abs(process.exitcode) for process in processes)
    return SimpleNamespace(returncode=returncode, stdout=stdout, stderr=stderr)


def recipe_here(*options, cache, name="boolq.py", cwd=None):
    """Runs a recipe in this process, which saves the six seconds or more of the imports."""
    stdout, stderr, code = io.StringIO(), io.StringIO(), 0
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(stdout), redirect_stderr(stderr):
        patch.setenv("W2S_HF_CACHE", str(cache))
        patch.setattr("sys.argv", [str(ROOT / "recipes" / name), *map(str, options)])
        patch.setattr(logging.root, "handlers", [])  # the recipe adds its own handler for this stderr
        if cwd is not None:
            patch.chdir(cwd)
        try:
            runpy.run_path(sys.argv[0], run_name="__main__")
        except SystemExit as ended:
            code = ended.code
            if isinstance(code, str):  # the interpreter prints such a message and exits with 1
                code, _ = 1, print(code, file=sys.stderr)
    return SimpleNamespace(returncode=code, stdout=stdout.getvalue(), stderr=stderr.getvalue())


def numbers(output: Path) -> dict:
    """Returns the content of results.json without times."""
    results = json.loads((output / "results.json").read_text())
    del results["wall_seconds"]
    return results
