"""The cache of the stages of an experiment. An interrupted stage can be resumed."""

import hashlib
import json
import logging
import os
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass, field
from functools import cache
from importlib.metadata import version
from pathlib import Path

from accelerate import PartialState
from accelerate.utils import broadcast_object_list
from filelock import FileLock

from ..code_fingerprint import plain_code
from ..config import hardware
from .console import Progress

__all__ = ["DEMO_SOURCES", "StageCache", "code_versions", "library_versions"]

logger = logging.getLogger(__name__)

# The versions of these libraries can change results, so they are part of every key.
_LIBRARIES = ("w2s_hf", "torch", "transformers", "peft", "trl", "accelerate", "bitsandbytes", "datasets")


def library_versions() -> dict[str, str]:
    """Returns the installed versions of the libraries that can change results."""
    return dict(_installed())


@cache
def _installed() -> dict[str, str]:
    return {name: version(name) for name in _LIBRARIES}


_PACKAGE = Path(__file__).parents[1]
# These files of the package read results, print, or push, and cannot change what is trained. All other files are part
# of the keys. A new file may cause a needless rebuild, but never a stale result.
_WITHOUT_EFFECT = (
    "__main__.py", "cards/", "cli.py", "command_line.py", "hub.py", "launch.py", "leaderboard.py", "memory/",
    "pgr_metric/", "plots.py", "publish.py", "results", "sweep/", "experiments/analyses.py", "experiments/cache.py",
    "experiments/cli.py", "experiments/config.py", "experiments/config_file.py", "experiments/console.py",
    "experiments/experiment.py", "experiments/output_directory.py", "experiments/report.py", "experiments/scores.py",
    "experiments/tracking.py",
)  # fmt: skip
# These files build the models of the demo.
DEMO_SOURCES = ("demo/", "trainers/checkpoints.py")


def code_versions(sources: tuple[str, ...] = ("",)) -> dict[str, str]:
    """
    Returns the versions of the libraries and of this package. If the package runs from its sources (an editable
    install), a hash of the sources is added to its version.

    Args:
        sources (`tuple[str]`, *optional*): Prefixes of the paths, relative to the package, of the files to hash.
            Defaults to all files that can change what is trained.
    """
    versions = library_versions()
    return versions if _is_installed() else {**versions, "w2s_hf": f"{versions['w2s_hf']} {_source_hash(sources)}"}


def _is_installed() -> bool:
    """
    Returns whether an installer has copied the package to site-packages, so that its version identifies its files.
    The metadata of the package does not show whether it was copied: sources may have metadata beside them. Only
    processes that start in the directory of the sources see that metadata.
    """
    return _PACKAGE.parent.name in ("site-packages", "dist-packages")


@cache
def _source_hash(sources: tuple[str, ...]) -> str:
    """Returns a hash of the code without comments, docstrings and layout: 12 hexadecimal digits."""
    digest = hashlib.sha256()
    for path in sorted(_PACKAGE.rglob("*.py")):
        name = path.relative_to(_PACKAGE).as_posix()
        if name.startswith(sources) and not name.startswith(_WITHOUT_EFFECT):
            digest.update(f"{name} {plain_code(path.read_text(encoding='utf-8'))}\n".encode())
    return digest.hexdigest()[:12]


def content_key(name: str, settings: dict, versions: dict[str, str]) -> str:
    """Returns a hash of everything that can change the result of a stage: 12 hexadecimal digits."""
    text = json.dumps({"stage": name, "settings": settings, "versions": versions}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def _can_be_resumed(partial: Path) -> bool:
    """Returns whether an unfinished stage left a complete checkpoint, a finished training or some completions."""
    return next(_progress_files(partial), None) is not None


def _progress_files(partial: Path) -> Iterator[Path]:
    """Yields the files from which an unfinished stage is resumed."""
    for pattern in ("*/checkpoint-*/trainer_state.json", "training.json", "**/completions/rank*.jsonl"):
        yield from partial.glob(pattern)


_STARTED = "started.json"


def _start_clock(partial: Path) -> float:
    """
    Returns the seconds of earlier, interrupted runs of a stage, and records the start of this run. Seconds are counted
    up to the last file from which the stage is resumed, since all later work is repeated.
    """
    path, seconds = partial / _STARTED, 0.0
    times = [file.stat().st_mtime for file in _progress_files(partial)]
    if times:
        with suppress(OSError, ValueError, KeyError):  # the file is missing or truncated
            before = json.loads(path.read_text())
            seconds = before["seconds_before"] + max(0.0, max(times) - before["time"])
    path.write_text(json.dumps({"time": time.time(), "seconds_before": seconds}))
    return seconds


@dataclass
class StageCache:
    """
    The finished stages in one directory, each with a key of its content.

    A stage is built in `<name>-<key>.partial`, which is renamed to `<name>-<key>` when it is complete. A directory
    without the suffix is therefore always complete. A stage that was killed is resumed from the content of its partial
    directory. A changed setting, data row, seed, library version or line of this package's sources changes the key, so
    that a result is never stale. With several ranks, rank 0 reads and renames the directories for all ranks.

    Args:
        root (`Path`): The directory of all stages.
        around (`Callable`, *optional*): Returns a context in which every stage is built, such as
            [`w2s_hf.demo.models.one_thread`].
        sources (`tuple[str]`, *optional*): The source files that the stages depend on; see [`code_versions`].
        progress ([`Progress`], *optional*): Announces the stages.

    Attributes:
        n_built, n_reused (`int`): The number of stages that this process has built, and the number of stages that were
            already finished. Each stage counts once.
        seconds (`dict[str, float]`): The seconds that each stage took, by name and summed over seeds, in the run that
            built it.
    """

    root: Path
    around: Callable[[], AbstractContextManager] = nullcontext
    sources: tuple[str, ...] = ("",)
    progress: Progress = field(default_factory=Progress)
    n_built: int = 0
    n_reused: int = 0
    seconds: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._counted: set[Path] = set()
        # The versions are read once, at the start. A source file that is changed later is not the code that this
        # process runs.
        self._versions = code_versions(self.sources)

    def key(self, name: str, settings: dict) -> str:
        """Returns the directory name of a stage. Stages that read this stage have the name among their settings."""
        return f"{name}-{content_key(name, settings, self._versions)}"

    def run(
        self,
        name: str,
        settings: dict,
        build: Callable[[Path], None],
        *,
        title: str | None = None,
        kind: str | None = None,
    ) -> Path:
        """
        Returns the directory of a finished stage. A stage that is not in the cache is built first.

        Args:
            name (`str`): The name of the stage, with which its directory begins.
            settings (`dict`): Everything that the result depends on, as JSON values, including the keys of the stages
                that it reads.
            build (`Callable[[Path], None]`): Writes the result into the given directory, which may contain files of an
                interrupted run. Every rank calls this function.
            title (`str`, *optional*): The description that the user sees. Defaults to the name. With an empty
                title, nothing is announced.
            kind (`str`, *optional*): The kind of the stage, as in [`Progress.plan`]. Defaults to the name.
        """
        title, kind = name.replace("-", " ") if title is None else title, kind or name
        state = PartialState()
        done = self.root / self.key(name, settings)
        partial = done.with_name(done.name + ".partial")
        # Another process that needs the same stage (a second run, another cell of a sweep) waits for this result.
        lock = FileLock(done.with_name(done.name + ".lock"))
        if state.is_main_process:
            self.root.mkdir(parents=True, exist_ok=True)
            lock.acquire()
        try:
            status = [done.is_dir(), partial.is_dir(), _can_be_resumed(partial)]
            if state.num_processes > 1:
                broadcast_object_list(status, from_process=0)
            is_done, is_begun, is_resumed = status
            if is_done:
                logger.debug(f"{done.name}: cached")
                self._finish(name, done, self.record(done)["seconds"], title, kind, is_cached=True)
                return done
            is_restarted = is_begun and not is_resumed
            note = "resumed from its last checkpoint" if is_resumed else "restarted, no checkpoint" * is_restarted
            logger.debug(f"{done.name}: {note or 'started'}")
            self.progress.begin(title, kind, note)
            seconds_before = 0.0
            if state.is_main_process:
                partial.mkdir(exist_ok=True)
                seconds_before = _start_clock(partial)
            state.wait_for_everyone()
            started = time.monotonic()
            with self.around():
                build(partial)
            state.wait_for_everyone()
            seconds = round(seconds_before + time.monotonic() - started, 2)
            if state.is_main_process:
                record = {
                    "stage": name,
                    "settings": settings,
                    "versions": library_versions(),
                    "hardware": hardware(),
                    "seconds": seconds,
                }
                (partial / "stage.json").write_text(json.dumps(record, indent=2, sort_keys=True) + "\n")
                (partial / _STARTED).unlink(missing_ok=True)
                os.replace(partial, done)
            state.wait_for_everyone()
        finally:
            if state.is_main_process:
                lock.release()
        self.n_built += 1
        self._finish(name, done, seconds, title, kind)
        return done

    @staticmethod
    def record(done: Path) -> dict:
        """Returns the record of a finished stage: `seconds`, `hardware`, `settings`, `versions`."""
        return json.loads((done / "stage.json").read_text())

    def _finish(
        self, name: str, done: Path, seconds: float, title: str, kind: str, *, is_cached: bool = False
    ) -> None:
        """Counts a finished stage and its seconds."""
        if done in self._counted:  # analyses read stages of the experiment again
            return
        self._counted.add(done)
        if is_cached:
            self.n_reused += 1
            self.progress.begin(title, kind, is_cached=True)
        self.seconds[name] = round(self.seconds.get(name, 0) + seconds, 2)
        self.progress.end(kind, seconds)
