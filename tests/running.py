"""Recipes as their users run them: in a process of their own, or in this one."""

import io
import json
import logging
import os
import runpy
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from types import SimpleNamespace

import pytest

ROOT = Path(__file__).parents[1]
# Enough pretraining for a run, not for an effect: what these tests compare is runs.
SMALL = "--demo_documents 1600 --n_train 160 --n_weak 96 --n_validation 40 --n_test 120".split()


def recipe(*options, cache, name="boolq.py", launcher=(), cwd=None, **environment):
    command = [sys.executable, *launcher, str(ROOT / "recipes" / name), *map(str, options)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "W2S_HF_CACHE": str(cache), "COLUMNS": "120", **environment}
    return subprocess.run(command, capture_output=True, text=True, timeout=400, env=environment, cwd=cwd)


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
