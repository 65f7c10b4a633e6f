"""Tests the output of a run: numbered steps, errors of one line, and no messages that a user cannot act on."""

import logging
import os
import re
import subprocess
import sys
import textwrap
import warnings
from collections import Counter
from types import SimpleNamespace

import pytest
from helpers.running import SMALL, TINY, recipe_here

from w2s_hf.experiments import console
from w2s_hf.experiments.console import Progress, quiet_libraries, run_recipe
from w2s_hf.experiments.seed import planned_models
from w2s_hf.methods import NAIVE

IN_A_PROCESS = """
import sys
from w2s_hf.experiments.console import run_recipe
assert not {{"torch", "transformers", "numpy"}} & set(sys.modules), "nothing heavy is imported before the first line"

def main():
{body}

run_recipe(main)
"""


@pytest.fixture
def progress(caplog):
    """Returns steps that log to `caplog.messages`."""
    caplog.set_level(logging.INFO, "w2s_hf")
    return Progress()


def test_steps_are_counted_and_cached_steps_say_so(progress, caplog):
    progress.plan(["weak", "strong", "strong"])
    progress.begin("weak supervisor", "weak")
    progress.begin("strong ceiling", "strong", is_cached=True)
    progress.begin("student", "strong", "resumed from its last checkpoint")
    assert caplog.messages == [
        "1 of 3: weak supervisor",
        "2 of 3: strong ceiling (cached)",
        "3 of 3: student (resumed from its last checkpoint)",
    ]


def test_a_step_that_was_not_planned_raises_the_total(progress, caplog):
    progress.plan(["weak"])
    progress.begin("another model", "strong")
    progress.begin("weak supervisor", "weak")
    assert caplog.messages == ["1 of 2: another model", "2 of 2: weak supervisor"]


def test_without_a_plan_nothing_is_counted_and_no_title_is_no_line(progress, caplog):
    progress.begin("", "weak")
    progress.end("weak", 100.0)
    progress.begin("weak supervisor", "weak")
    assert caplog.messages == ["weak supervisor"], "the seconds of one step tell nothing of those that follow"


def test_the_stages_of_a_group_are_one_step(progress, caplog):
    progress.plan(["analysis", "student"])
    with progress.group("analysis"):
        progress.begin("first model", "student", is_cached=True)
        progress.end("student", 1000.0)
        progress.begin("second model", "other")
    progress.prefix = "seed 1, "
    progress.begin("student", "student")
    assert caplog.messages == [
        "1 of 2: analysis", "    first model (cached)", "    second model", "2 of 2: seed 1, student"
    ], "seconds of stages in a group do not count for other steps"  # fmt: skip


def test_the_time_left_is_that_of_finished_steps_of_the_same_kind(progress, caplog):
    progress.plan(["weak", "strong", "strong", "strong", "other"])
    for kind, seconds in (("weak", 30.0), ("strong", 100.0), ("strong", 140.0), ("strong", 120.0), ("other", 1.0)):
        progress.begin(kind, kind)
        progress.end(kind, seconds)
    assert [re.findall(r"\((.*)\)", line) for line in caplog.messages] == [
        [], [], ["at least 3 minutes left"], ["at least 2 minutes left"], []
    ], "the duration of `other` is unknown"  # fmt: skip
    caplog.clear()
    progress.plan(["strong", "strong", "other"])
    progress.begin("strong", "strong", is_cached=True)
    progress.begin("strong", "strong")
    assert caplog.messages == ["6 of 8: strong (cached)", "7 of 8: strong (about 2 minutes left)"]


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(2, "10 seconds"), (44, "40 seconds"), (70, "1 minute"), (3000, "50 minutes"), (9000, "2.5 hours")],
)
def test_durations_are_rounded(seconds, words):
    assert console._duration(seconds) == words


# ---- Runs: each step is counted once ----


def numbered(stderr: str) -> list[str]:
    """Returns the titles of the numbered steps, and checks that their number is the announced total."""
    steps = re.findall(r"^(\d+) of (\d+): (.*)$", stderr, flags=re.MULTILINE)
    assert steps and [(int(number), int(total)) for number, total, _ in steps] == [
        (number, len(steps)) for number in range(1, len(steps) + 1)
    ], stderr
    return [title for _, _, title in steps]


FEW_STEPS = "--max_steps 1 --load_best_model_at_end false --eval_strategy no --save_strategy no".split()
RUNS = {
    "seeds": ("boolq.py", "--methods naive --seeds 0 1 --n_supervisors 2"),
    "chain": ("boolq.py", "--methods bootstrap naive"),
    "probe": ("boolq.py", "--methods naive --linear_probe true --analyses saliency agreement"),
    "generative": ("anthropic_hh.py", "--methods naive --generative_finetuning true"),
    "chess": ("chess.py", "--zero_shot true"),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", RUNS)
def test_all_steps_of_a_run_are_counted(name, cache, tmp_path):
    recipe, options = RUNS[name]
    if recipe == "chess.py":
        pytest.importorskip("chess")
    options = [*TINY, *FEW_STEPS, *options.split(), "--output_dir", tmp_path]
    process = recipe_here(*options, cache=cache, name=recipe)
    assert process.returncode == 0, process.stderr[-3000:]
    titles = numbered(process.stderr)
    assert sum("strong ceiling" in title for title in titles) == 1 + (name in ("seeds", "generative"))
    if name == "seeds":
        assert {title[:8] for title in titles} == {"seed 0, ", "seed 1, "}
    if name == "probe":
        again = numbered(recipe_here(*options, cache=cache, name=recipe).stderr)
        groups = ("analysis", "linear probe")
        assert [title for title in again if "(cached)" not in title and not title.startswith(groups)] == []
        assert [title.removesuffix(" (cached)") for title in again] == [
            re.sub(r" \((cached|[^()]* left)\)$", "", title) for title in titles
        ]


def test_the_steps_of_a_chain_on_the_same_rows_are_planned():
    args = SimpleNamespace(methods_by_name={"bootstrap": NAIVE}, n_supervisors=1, link_rows="same")
    steps = planned_models(args, "weak", "student", ["link"], has_control=False)
    assert Counter(steps) == {"weak": 1, "student": 3, "link": 1}


# ---- Ends of a run ----


def run_in_a_process(body: str, **environment) -> subprocess.CompletedProcess:
    script = IN_A_PROCESS.format(body=textwrap.indent(body, "    "))
    return subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=60, env={**os.environ, **environment}
    )


def test_an_error_is_one_line():
    process = run_in_a_process(
        "try:\n    1 / 0\nexcept ZeroDivisionError as error:\n    raise ValueError('no') from error"
    )
    assert (process.returncode, process.stdout, process.stderr) == (1, "", "error: no\n")


def test_an_error_of_a_library_says_how_to_see_its_traceback():
    process = run_in_a_process("import json\njson.loads('no')")
    assert process.returncode == 1 and process.stderr.startswith("error: Expecting value")
    assert process.stderr.endswith("(W2S_HF_DEBUG=1 shows the traceback)\n")


def test_ctrl_c_is_one_line():
    process = run_in_a_process("import os, signal\nos.kill(os.getpid(), signal.SIGINT)")
    assert process.returncode == 130
    assert process.stderr == "\nStopped. Repeat the command to resume the run.\n"


def test_ctrl_c_during_the_imports_is_one_line():
    body = "import os, signal\nos.kill(os.getpid(), signal.SIGINT)\nreturn lambda: print('not reached')"
    process = run_in_a_process(body)
    assert (process.returncode, process.stdout) == (130, "") and "Traceback" not in process.stderr


def test_what_main_returns_is_run():
    assert run_in_a_process("return lambda: print('reached')").stdout == "reached\n"


def test_a_second_ctrl_c_is_ignored():
    interrupts = (
        "import atexit, os, signal\natexit.register(os.kill, os.getpid(), signal.SIGINT)\nraise KeyboardInterrupt"
    )
    process = run_in_a_process(interrupts)
    assert process.returncode == 130 and "Traceback" not in process.stderr


def test_tracebacks_are_shown_on_request():
    for body in ("raise ValueError('no')", "raise KeyboardInterrupt"):
        process = run_in_a_process(body, W2S_HF_DEBUG="1")
        assert "Traceback" in process.stderr and process.stderr.count("Traceback") == 1
        assert "Traceback" not in run_in_a_process(body, W2S_HF_DEBUG="0").stderr


def test_of_several_ranks_the_first_speaks(monkeypatch):
    assert run_in_a_process("raise KeyboardInterrupt", RANK="1").stderr == ""
    # The first rank may have no error, so other ranks print theirs after some seconds.
    waits = []
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setattr(console.time, "sleep", waits.append)

    def fail():
        error = ValueError("no")
        error.add_note("Stages are kept.")
        raise error

    with pytest.raises(SystemExit, match=r"^error: no.*\nStages are kept\.$"):
        run_recipe(fail)
    assert waits == [console._WAIT_FOR_RANK_0]


# ---- Messages of libraries ----


@pytest.fixture
def restored():
    """Removes the filters after the test."""
    loggers = [logging.getLogger(name) for name, _ in console._LOG_MESSAGES]
    filters = [list(logger.filters) for logger in loggers]
    with warnings.catch_warnings():
        yield
    for logger, before in zip(loggers, filters, strict=True):
        logger.filters = before


def test_only_the_named_messages_are_hidden(restored, caplog):
    for name, beginning in console._LOG_MESSAGES:
        logging.getLogger(name).filters = []
        logging.getLogger(name).propagate = True
        logging.getLogger(name).warning(f"{beginning}: before")
    assert len(caplog.messages) == len(console._LOG_MESSAGES)
    quiet_libraries()
    quiet_libraries()
    caplog.clear()
    for name, beginning in console._LOG_MESSAGES:
        logging.getLogger(name).warning(f"{beginning}: %s", "after")
        logging.getLogger(name).warning("something else")
        assert len(logging.getLogger(name).filters) == 1
    assert set(caplog.messages) == {"something else"}
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        quiet_libraries()
        warnings.warn(
            "`is_gradient_checkpointing` is deprecated and will be removed in v6.", FutureWarning, stacklevel=1
        )
        warnings.warn("`gradient_checkpointing_enable` is deprecated and will", FutureWarning, stacklevel=1)
        warnings.warn("another is deprecated", FutureWarning, stacklevel=1)
    assert [str(warning.message) for warning in seen] == ["another is deprecated"]


@pytest.mark.slow
@pytest.mark.parametrize("device", [(), ("--use_cpu", "false", "--bf16", "false")], ids=["demo", "any device"])
def test_a_run_prints_no_message_of_a_library(device, cache, tmp_path):
    """Adapters, evaluation and checkpoints that are written within one second."""
    arguments = ("--methods", "naive", *device, "--output_dir", tmp_path)
    with warnings.catch_warnings(record=True) as seen:  # pytest would collect them, away from stderr
        warnings.simplefilter("default")
        process = recipe_here(*SMALL, *arguments, cache=cache)
    assert process.returncode == 0, process.stderr[-3000:]
    # Python shows a deprecation only to the developer of the module that uses it.
    shown = [str(warning.message) for warning in seen if not issubclass(warning.category, DeprecationWarning)]
    assert not shown
    for words in ("Warning", "[transformers]", "deprecated", "mtime"):
        assert words not in process.stderr + process.stdout, process.stderr
