"""Recipes as their users run them: in a process of their own, in one that has its imports done, or in this one."""

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
# Fixtures that take over five seconds. Tests that use one are marked as slow.
WHOLE_RUNS = {"analysed", "climbed", "finished", "pipeline", "pushed", "swept"}
# Enough pretraining for a run, not for an effect: what these tests compare is runs.
SMALL = "--demo_documents 1600 --n_train 160 --n_weak 96 --n_validation 40 --n_test 120".split()
# Enough of a run for what every size of it shows. The second step of a training is on half a batch.
TINY = "--demo_documents 1600 --n_train 48 --n_weak 48 --n_validation 16 --n_test 40 --max_steps 3".split()

# One server imports what the recipes import and does nothing else; its forks are processes that start there. They have
# its hash seed, not that of `recipe` or `recipe_here`: what is compared must not hang on the order of a set.
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
    A script in a process of its own that has its imports done, which saves ten seconds. `log` gets `stdout` and
    `stderr`. The method `kill` of the result is `kill -9`.
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
    gc.freeze()  # as `imported_modules_are_no_garbage` of this process: half a second for every time that one collects
    # A shell's background job ignores interrupts, and so would its children.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    runpy.run_path(argv[0], run_name="__main__")


def forked(script: Path, *options, n_ranks=1, **environment) -> SimpleNamespace:
    """`start`, and what came of it; of several ranks, with the variables that torchrun sets."""
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
                break  # the other ranks would wait for it
            time.sleep(0.01)
        for process in processes:
            process.kill()
            process.join()
        stdout, stderr = ((Path(log) / name).read_text() for name in ("stdout", "stderr"))
    returncode = max(abs(process.exitcode) for process in processes)
    return SimpleNamespace(returncode=returncode, stdout=stdout, stderr=stderr)


def recipe_here(*options, cache, name="boolq.py", cwd=None):
    """The same in this process: what a second one would add is its imports, six seconds and more of them."""
    stdout, stderr, code = io.StringIO(), io.StringIO(), 0
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(stdout), redirect_stderr(stderr):
        patch.setenv("W2S_HF_CACHE", str(cache))
        patch.setattr("sys.argv", [str(ROOT / "recipes" / name), *map(str, options)])
        patch.setattr(logging.root, "handlers", [])  # the recipe makes its own, for this stderr
        if cwd is not None:
            patch.chdir(cwd)
        try:
            runpy.run_path(sys.argv[0], run_name="__main__")
        except SystemExit as ended:
            code = ended.code
            if isinstance(code, str):  # as the interpreter does
                code, _ = 1, print(code, file=sys.stderr)
    return SimpleNamespace(returncode=code, stdout=stdout.getvalue(), stderr=stderr.getvalue())


def numbers(output: Path) -> dict:
    """results.json without its clock."""
    results = json.loads((output / "results.json").read_text())
    del results["wall_seconds"]
    return results
