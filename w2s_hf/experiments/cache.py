"""The cache of the steps of an experiment, each of which can be resumed."""

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

__all__ = ["StageCache", "library_versions"]

logger = logging.getLogger(__name__)

# Libraries whose version can change a number, and so is part of every key.
_LIBRARIES = ("w2s_hf", "torch", "transformers", "peft", "trl", "accelerate", "bitsandbytes", "datasets")


def library_versions() -> dict[str, str]:
    """Installed versions of the libraries that make the numbers."""
    return dict(_installed())


@cache
def _installed() -> dict[str, str]:
    return {name: version(name) for name in _LIBRARIES}


def content_key(name: str, settings: dict) -> str:
    """Twelve hexadecimal digits of everything that can change what a stage makes."""
    text = json.dumps({"stage": name, "settings": settings, "versions": library_versions()}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


@dataclass
class StageCache:
    """
    Finished steps below one directory, each under a key of its content.

    A step builds into `<name>-<key>.partial` and is renamed to `<name>-<key>` when it is complete, so a directory
    without the suffix is always whole. A killed step finds its own partial directory again and may resume from what is
    in it. A changed setting, data row, seed or library version is another key, never a stale hit. On several ranks,
    rank 0 looks and renames, and the others are told.

    Args:
        root (`Path`): Where the directories go.
        around (`Callable`, *optional*): Makes a context in which every step is built, such as
            [`w2s_hf.demo.models.one_thread`].

    `n_built` and `n_reused` tell what this process did; `seconds` tells how long each step took, by name and summed
    over seeds, whichever run built it.
    """

    root: Path
    around: Callable[[], AbstractContextManager] = nullcontext
    n_built: int = 0
    n_reused: int = 0
    seconds: dict[str, float] = field(default_factory=dict)

    def key(self, name: str, settings: dict) -> str:
        """The directory name of a step; other steps that read it put it into their own settings."""
        return f"{name}-{content_key(name, settings)}"

    def run(self, name: str, settings: dict, build: Callable[[Path], None]) -> Path:
        """
        The directory of a finished step, built now if it is not there.

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
            found = [done.is_dir(), partial.is_dir()]
            if state.num_processes > 1:
                broadcast_object_list(found, from_process=0)
            is_done, is_resumed = found
            if is_done:
                self.n_reused += 1
                self._add_seconds(name, self.record(done)["seconds"])
                logger.info(f"{done.name}: finished earlier, reused")
                return done
            logger.info(f"{done.name}: {'resumed' if is_resumed else 'started'}")
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
        self._add_seconds(name, seconds)
        return done

    @staticmethod
    def record(done: Path) -> dict:
        """What a finished step left of its making: `seconds`, `hardware`, `settings`, `versions`."""
        return json.loads((done / "stage.json").read_text())

    def _add_seconds(self, name: str, seconds: float) -> None:
        self.seconds[name] = round(self.seconds.get(name, 0) + seconds, 2)
