"""
The terminal output of a run: numbered steps with the time left, and errors of one line.

Messages of libraries that a user cannot act on are hidden. This module imports only the standard library, so that a
script can use it before it imports torch.
"""

import gc
import logging
import os
import signal
import sys
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

__all__ = ["STOPPED", "Progress", "quiet_libraries", "run_recipe"]

logger = logging.getLogger(__name__)

_DEBUG_VARIABLE = "W2S_HF_DEBUG"
# A process that Ctrl-C stopped has this exit code by the convention of shells: 128 plus the number of SIGINT.
STOPPED = 130
# A rank other than 0 waits this number of seconds before it prints an error. Most errors occur on all ranks. The
# launcher ends the other ranks when rank 0 has ended, so that the error is printed once.
_WAIT_FOR_RANK_0 = 3.0


# ---- Steps ----


class Progress:
    """
    Logs a line at the start of each step of a run, such as
    `3 of 8: strong ceiling, gpt2-xl on 2000 rows with true labels (about 4 minutes left)`.

    A step is one stage of the cache, such as the training of a model, or a group of stages, such as an analysis.
    The time left is estimated from the measured seconds of finished steps of the same kind.

    Attributes:
        prefix (`str`): Begins the title of each step, such as `"seed 1, "`.
    """

    def __init__(self) -> None:
        self.prefix = ""
        self._left: Counter[str] = Counter()
        self._n_started = 0
        self._is_planned = False
        self._is_grouped = False
        self._seconds: dict[str, list[float]] = {}

    def plan(self, kinds: Iterable[str]) -> None:
        """Sets the expected steps. Steps of one kind take similar time. Without a plan, steps have no numbers."""
        self._left.update(kinds)
        self._is_planned = True

    def cancel(self, kind: str) -> None:
        """Removes a planned step."""
        if self._left[kind]:
            self._left[kind] -= 1

    def begin(self, title: str, kind: str, note: str = "", *, is_cached: bool = False) -> None:
        """
        Logs the start of a stage.

        Args:
            title (`str`): The title of the stage. A stage with an empty title is neither logged nor counted.
            kind (`str`): The kind of the stage, as in [`plan`].
            note (`str`, *optional*): A note in brackets, such as `"resumed from its last checkpoint"`.
            is_cached (`bool`, *optional*, defaults to `False`): Whether the result is taken from the cache.
        """
        if not title:
            return
        notes = ["cached"] if is_cached else [note] if note else []
        if self._is_grouped:
            logger.info(f"    {title}{_in_brackets(notes)}")
            return
        time_left = self._time_left(kind) if self._is_planned and not is_cached else None
        self._n_started += 1
        if self._left[kind]:
            self._left[kind] -= 1
        n_steps = self._n_started + self._left.total()
        number = f"{self._n_started} of {n_steps}: " if self._is_planned else ""
        logger.info(f"{number}{self.prefix}{title}{_in_brackets([*notes, *([time_left] if time_left else [])])}")

    def end(self, kind: str, seconds: float) -> None:
        """Records the seconds of a stage. Stages inside a group are not recorded."""
        if not self._is_grouped:
            self._seconds.setdefault(kind, []).append(seconds)

    @contextmanager
    def group(self, title: str) -> Iterator[None]:
        """Counts all stages inside the context as one step. The title is also the kind of the step."""
        started = time.monotonic()
        self.begin(title, title)
        self._is_grouped = True
        try:
            yield
        finally:
            self._is_grouped = False
        self.end(title, time.monotonic() - started)

    def _time_left(self, kind: str) -> str | None:
        """Returns the estimated time of all steps that are left, or `None` if no step of their kinds has finished."""
        kinds = self._left | Counter({kind: 1})  # adds the current step if it was not planned
        known = [of_kind for of_kind, n in kinds.items() if n and of_kind in self._seconds]
        if not known:
            return None
        seconds = sum(kinds[name] * sum(self._seconds[name]) / len(self._seconds[name]) for name in known)
        is_complete = all(name in self._seconds for name, n in kinds.items() if n)
        return f"{'about' if is_complete else 'at least'} {_duration(seconds)} left"


def _in_brackets(notes: list[str]) -> str:
    return f" ({'; '.join(notes)})" if notes else ""


def _duration(seconds: float) -> str:
    """Returns a rounded duration in words."""
    if seconds < 55:
        return f"{max(10, 10 * round(seconds / 10))} seconds"
    if seconds < 100 * 60:
        minutes = max(1, round(seconds / 60))
        return f"{minutes} minute{'s' if minutes > 1 else ''}"
    return f"{round(seconds / 3600, 1):g} hours"


# ---- Messages of libraries ----

# A user cannot act on these warnings. Each entry has the beginning of the message (a regular expression), the
# category, and the versions that warn.
_WARNINGS: list[tuple[str, type[Warning]]] = [
    # PEFT 0.21 reads this property when it wraps a model, and transformers 5.23 has renamed it.
    (r"`is_gradient_checkpointing` is deprecated", FutureWarning),
    # `w2s memory` calls this method, which transformers 5.23 has also renamed.
    (r"`gradient_checkpointing_enable` is deprecated", FutureWarning),
]

# A user cannot act on these log messages. Each entry has the logger, and the beginning of the message.
_LOG_MESSAGES: list[tuple[str, str]] = [
    # bitsandbytes 0.49 and 0.50 look, on import, for a kernel for inference in 4 bits on CPUs with AVX-512. Training
    # does not use it.
    ("bitsandbytes.backends.cpu.ops", "Failed to load CPU gemm_4bit_forward from kernels-community"),
    # transformers 5.17 and 5.23 warn about modification times if all checkpoints were written within one second. They
    # then sort the checkpoints by the numbers in their names, which is correct.
    ("transformers.trainer_utils", "mtime may not be reliable on this filesystem"),
]


class _MessageFilter(logging.Filter):
    """Drops the log records whose message begins with a given text."""

    def __init__(self, beginning: str):
        super().__init__()
        self.beginning = beginning

    def filter(self, record: logging.LogRecord) -> bool:
        """Returns whether the record is logged."""
        return not str(record.msg).startswith(self.beginning)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _MessageFilter) and other.beginning == self.beginning

    def __hash__(self) -> int:
        return hash(self.beginning)


def quiet_libraries() -> None:
    """
    Hides library messages that users cannot act on. All other messages are shown. Call this function before the
    libraries are imported, since some of the messages are printed on import.
    """
    for message, category in _WARNINGS:
        warnings.filterwarnings("ignore", message=message, category=category)
    for name, beginning in _LOG_MESSAGES:
        logging.getLogger(name).addFilter(_MessageFilter(beginning))


# ---- The whole run ----


def run_recipe(main: Callable[[], Callable[[], object] | None]) -> None:
    """
    Runs a recipe. Errors that the user can fix end it with one line and exit code 1. Ctrl-C ends it with one line and
    exit code 130. The environment variable `W2S_HF_DEBUG=1` adds the tracebacks and a log of the cache.

    Args:
        main (`Callable`): Runs the recipe. Alternatively, it imports torch and transformers and returns the function
            that runs the recipe. Ctrl-C during these imports then ends the process in the same way.
    """
    is_debugging = os.environ.get(_DEBUG_VARIABLE, "0") not in ("", "0")
    is_first_rank = os.environ.get("RANK", "0") == "0"
    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    if is_first_rank:
        logging.getLogger("w2s_hf").setLevel(logging.DEBUG if is_debugging else logging.INFO)
    quiet_libraries()
    try:
        # Imported modules are never freed. A garbage collection that skips them is half a second faster.
        gc.freeze()
        run = main()
        if run is not None:
            gc.freeze()
            run()
    except KeyboardInterrupt:
        with _no_interrupts():
            logger.debug("traceback", exc_info=True)
            if is_first_rank:
                print("\nStopped. Repeat the command to resume the run.", file=sys.stderr, flush=True)
        sys.exit(STOPPED)
    except (ValueError, OSError) as error:
        if not is_first_rank:
            time.sleep(_WAIT_FOR_RANK_0)
        logger.debug("traceback", exc_info=True)
        hint = "" if is_debugging or _is_ours(error) else f" ({_DEBUG_VARIABLE}=1 shows the traceback)"
        notes = [f"\n{note}" for note in getattr(error, "__notes__", [])]
        sys.exit(f"error: {error}{hint}{''.join(notes)}")
    _leave_process_group()


def _is_ours(error: BaseException) -> bool:
    """Returns whether an error was raised by this package or by a script, not by a library."""
    traceback = error.__traceback__
    while traceback is not None and traceback.tb_next is not None:
        traceback = traceback.tb_next
    module = "" if traceback is None else traceback.tb_frame.f_globals.get("__name__", "")
    return module == "__main__" or module.split(".")[0] == "w2s_hf"


@contextmanager
def _no_interrupts() -> Iterator[None]:
    """Ignores further interrupts: a second Ctrl-C would print a traceback."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    yield


def _leave_process_group() -> None:
    """Leaves the process group at the end of a run. Otherwise torch 2.13 warns when the process exits."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
