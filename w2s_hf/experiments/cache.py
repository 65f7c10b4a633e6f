"""The cache of the steps of an experiment, each of which can be resumed."""

import ast
import hashlib
import json
import logging
import os
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from functools import cache
from importlib.metadata import version
from pathlib import Path

from accelerate import PartialState
from accelerate.utils import broadcast_object_list
from filelock import FileLock

from ..config import hardware

__all__ = ["DEMO_SOURCES", "StageCache", "code_versions", "library_versions"]

logger = logging.getLogger(__name__)

# Libraries whose version can change a number, and so is part of every key.
_LIBRARIES = ("w2s_hf", "torch", "transformers", "peft", "trl", "accelerate", "bitsandbytes", "datasets")


def library_versions() -> dict[str, str]:
    """Returns the installed versions of the libraries that make the numbers."""
    return dict(_installed())


@cache
def _installed() -> dict[str, str]:
    return {name: version(name) for name in _LIBRARIES}


_PACKAGE = Path(__file__).parents[1]
# Files of the package that read results, print, or push, and cannot change what is trained. Every other one is part of
# the keys, so that a new file can cost a needless rebuild and never a stale result.
_WITHOUT_EFFECT = (
    "cards/", "memory/", "sweep/", "pgr_metric/", "command_line.py", "hub.py", "leaderboard.py", "plots.py",
    "publish.py", "results", "experiments/analyses.py", "experiments/cache.py", "experiments/cli.py",
    "experiments/config.py", "experiments/config_file.py", "experiments/experiment.py",
    "experiments/output_directory.py", "experiments/report.py", "experiments/scores.py",
)  # fmt: skip
# The files that make the models of the demo.
DEMO_SOURCES = ("demo/", "trainers/checkpoints.py")


def code_versions(sources: tuple[str, ...] = ("",)) -> dict[str, str]:
    """
    Returns what of the installed code can change a number: the versions of the libraries, and of this package either
    its version, or, where it runs from its sources (an editable install), a hash of the sources.

    Args:
        sources (`tuple[str]`, *optional*): Beginnings of paths in the package, of the files that matter; defaults to
            all that can change what is trained.
    """
    versions = library_versions()
    return versions if _is_installed() else {**versions, "w2s_hf": f"{versions['w2s_hf']} {_source_hash(sources)}"}


def _is_installed() -> bool:
    """
    Returns whether the package is where an installer has put it, so that its files belong to its version. Not asked
    of its metadata: beside the sources there is some, too, which only processes that start in that directory see.
    """
    return _PACKAGE.parent.name in ("site-packages", "dist-packages")


@cache
def _source_hash(sources: tuple[str, ...]) -> str:
    """Returns a hash of the code of files, without its comments, docstrings and layout: 12 hexadecimal digits."""
    digest = hashlib.sha256()
    for path in sorted(_PACKAGE.rglob("*.py")):
        name = path.relative_to(_PACKAGE).as_posix()
        if name.startswith(sources) and not name.startswith(_WITHOUT_EFFECT):
            tree = ast.parse(path.read_text(encoding="utf-8"))
            for node in ast.walk(tree):
                body = getattr(node, "body", None)
                if isinstance(body, list):
                    # A string that stands alone is a docstring, or does nothing.
                    vars(node)["body"] = [part for part in body if not _is_text(part)]
            digest.update(f"{name} {ast.dump(tree)}\n".encode())
    return digest.hexdigest()[:12]


def _is_text(node: ast.stmt) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)


def content_key(name: str, settings: dict, versions: dict[str, str]) -> str:
    """Returns twelve hexadecimal digits of everything that can change what a stage makes."""
    text = json.dumps({"stage": name, "settings": settings, "versions": versions}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def _can_be_resumed(partial: Path) -> bool:
    """Returns whether an unfinished step left a whole checkpoint, a finished training or a part of its completions."""
    patterns = ("*/checkpoint-*/trainer_state.json", "training.json", "**/completions/rank*.jsonl")
    return any(any(partial.glob(pattern)) for pattern in patterns)


@dataclass
class StageCache:
    """
    Finished steps below one directory, each under a key of its content.

    A step builds into `<name>-<key>.partial` and is renamed to `<name>-<key>` when it is complete, so a directory
    without the suffix is always whole. A killed step finds its own partial directory again and may resume from what is
    in it. A changed setting, data row, seed, library version or line of this package's sources is another key, never
    a stale hit. On several ranks, rank 0 looks and renames, and broadcasts what it found.

    Args:
        root (`Path`): Where the directories go.
        around (`Callable`, *optional*): Makes a context in which every step is built, such as
            [`w2s_hf.demo.models.one_thread`].
        sources (`tuple[str]`, *optional*): The sources of the steps; see [`code_versions`].

    `n_built` and `n_reused` count the steps that this process built, and those that were finished before it asked for
    them, each once. `seconds` tells how long each step took, by name and summed over seeds, whichever run built it.
    """

    root: Path
    around: Callable[[], AbstractContextManager] = nullcontext
    sources: tuple[str, ...] = ("",)
    n_built: int = 0
    n_reused: int = 0
    seconds: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._counted: set[Path] = set()
        # Found once, at the start: a source file that is saved later is not the code that this process runs.
        self._versions = code_versions(self.sources)

    def key(self, name: str, settings: dict) -> str:
        """Returns the directory name of a step; other steps that read it put it into their own settings."""
        return f"{name}-{content_key(name, settings, self._versions)}"

    def run(self, name: str, settings: dict, build: Callable[[Path], None]) -> Path:
        """
        Returns the directory of a finished step, built now if it is not there.

        Args:
            name (`str`): For people, and for the directory.
            settings (`dict`): Everything that the result depends on, as JSON values, including the keys of the steps
                it reads.
            build (`Callable[[Path], None]`): Makes the result in the given directory, which may hold what an
                interrupted earlier try left there. Called on every rank.
        """
        state = PartialState()
        done = self.root / self.key(name, settings)
        partial = done.with_name(done.name + ".partial")
        # Another process that wants the same step (a second run, a sweep's other cell) waits for this one's result.
        lock = FileLock(done.with_name(done.name + ".lock"))
        if state.is_main_process:
            self.root.mkdir(parents=True, exist_ok=True)
            lock.acquire()
        try:
            found = [done.is_dir(), partial.is_dir(), _can_be_resumed(partial)]
            if state.num_processes > 1:
                broadcast_object_list(found, from_process=0)
            is_done, is_begun, is_resumed = found
            if is_done:
                self.n_reused += done not in self._counted
                self._add_seconds(name, done, self.record(done)["seconds"])
                logger.info(f"{done.name}: finished earlier, reused")
                return done
            how = "resumed" if is_resumed else "started again, since there is no checkpoint" if is_begun else "started"
            logger.info(f"{done.name}: {how}")
            if state.is_main_process:
                partial.mkdir(exist_ok=True)
            state.wait_for_everyone()
            started = time.monotonic()
            with self.around():
                build(partial)
            state.wait_for_everyone()
            seconds = round(time.monotonic() - started, 2)
            if state.is_main_process:
                record = {
                    "stage": name,
                    "settings": settings,
                    "versions": library_versions(),
                    "hardware": hardware(),
                    "seconds": seconds,
                }
                (partial / "stage.json").write_text(json.dumps(record, indent=2, sort_keys=True) + "\n")
                os.replace(partial, done)
            state.wait_for_everyone()
        finally:
            if state.is_main_process:
                lock.release()
        self.n_built += 1
        self._add_seconds(name, done, seconds)
        return done

    @staticmethod
    def record(done: Path) -> dict:
        """Returns the record of a finished step: `seconds`, `hardware`, `settings`, `versions`."""
        return json.loads((done / "stage.json").read_text())

    def _add_seconds(self, name: str, done: Path, seconds: float) -> None:
        if done in self._counted:  # an analysis asks for steps of the experiment again
            return
        self._counted.add(done)
        self.seconds[name] = round(self.seconds.get(name, 0) + seconds, 2)
