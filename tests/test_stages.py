"""Tests stages: they are complete or missing, their keys cover all that changes the result, and they are resumed."""

import json
import os
import shutil
import signal
import subprocess
import sys
import textwrap
import time

import pytest

from w2s_hf.experiments import cache
from w2s_hf.experiments.cache import StageCache
from w2s_hf.trainers.checkpoints import last_complete_checkpoint


def write(text):
    return lambda directory: (directory / "result.txt").write_text(text)


def test_a_finished_stage_is_reused_and_a_changed_setting_is_another(tmp_path):
    stages = StageCache(tmp_path)
    first = stages.run("train", {"learning_rate": 1e-3}, write("a"))
    again = stages.run("train", {"learning_rate": 1e-3}, write("never"))
    other = stages.run("train", {"learning_rate": 1e-4}, write("b"))
    assert first == again != other
    assert (first / "result.txt").read_text() == "a" and (other / "result.txt").read_text() == "b"
    assert (stages.n_built, stages.n_reused) == (2, 0), "stages that this run has built do not count as reused"
    assert set(stages.seconds) == {"train"}


def test_a_reused_stage_says_how_long_it_took_to_build(tmp_path):
    first, second = StageCache(tmp_path), StageCache(tmp_path)
    first.run("train", {}, lambda directory: time.sleep(0.05))
    second.run("train", {}, write("never"))
    assert second.n_reused == 1 and second.seconds == first.seconds and first.seconds["train"] >= 0.05
    second.run("train", {}, write("never"))
    assert second.n_reused == 1 and second.seconds == first.seconds, "it was built once"


@pytest.mark.parametrize(
    ("left", "note"),
    [
        (None, ""),
        ("checkpoints/runs/events", " (restarted, no checkpoint)"),
        ("checkpoints/checkpoint-1/model.safetensors", " (restarted, no checkpoint)"),
        ("checkpoints/checkpoint-1/trainer_state.json", " (resumed from its last checkpoint)"),
        ("pretraining/checkpoint-1/trainer_state.json", " (resumed from its last checkpoint)"),
        ("training.json", " (resumed from its last checkpoint)"),
        ("completions/rank0.jsonl", " (resumed from its last checkpoint)"),
    ],
)
def test_the_log_says_whether_a_stage_is_resumed_or_started_again(left, note, tmp_path, caplog):
    stages = StageCache(tmp_path)
    if left is not None:
        file = tmp_path / f"{stages.key('train', {})}.partial" / left
        file.parent.mkdir(parents=True)
        file.touch()
    with caplog.at_level("INFO", "w2s_hf"):
        stages.run("train", {}, write("a"), title="a model")
        StageCache(tmp_path).run("train", {}, write("never"), title="a model")
    assert caplog.messages == [f"a model{note}", "a model (cached)"], "and no key"


def test_the_seconds_of_a_resumed_stage_include_those_before_its_last_checkpoint(tmp_path):
    stages = StageCache(tmp_path)

    def stopped(directory):
        checkpoint = directory / "checkpoints" / "checkpoint-1"
        checkpoint.mkdir(parents=True)
        (checkpoint / "trainer_state.json").touch()
        started = {"time": time.time() - 100, "seconds_before": 0}  # a hundred seconds before the checkpoint
        (directory / "started.json").write_text(json.dumps(started))
        raise KeyboardInterrupt

    for _ in range(2):  # the second run is stopped before it writes another checkpoint
        with pytest.raises(KeyboardInterrupt):
            stages.run("train", {}, stopped if not list(tmp_path.glob("*.partial")) else stop)
    done = stages.run("train", {}, write("a"))
    assert 99 <= StageCache.record(done)["seconds"] < 110
    assert {path.name for path in done.iterdir()} >= {"result.txt", "stage.json"}
    assert not (done / "started.json").exists()


def stop(directory):
    raise KeyboardInterrupt


def test_a_stage_without_a_checkpoint_begins_its_clock_anew(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        StageCache(tmp_path).run("train", {}, stop)
    (started,) = tmp_path.glob("*.partial/started.json")
    started.write_text('{"time": 0, "seconds_before": 500}')
    assert StageCache.record(StageCache(tmp_path).run("train", {}, write("a")))["seconds"] < 10


def test_versions_are_part_of_the_key(tmp_path, monkeypatch):
    before = StageCache(tmp_path).key("train", {})
    monkeypatch.setattr("w2s_hf.experiments.cache.library_versions", lambda: {"torch": "0.1", "w2s_hf": "0.1"})
    assert StageCache(tmp_path).key("train", {}) != before


@pytest.fixture
def sources(tmp_path, monkeypatch):
    """A copy of the package's sources, from which keys are computed."""
    package = tmp_path / "w2s_hf"
    shutil.copytree(cache._PACKAGE, package, ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr(cache, "_PACKAGE", package)
    monkeypatch.setattr(cache, "_is_installed", lambda: False)
    monkeypatch.setattr(cache, "_source_hash", cache._source_hash.__wrapped__)
    return package


@pytest.mark.parametrize(
    ("file", "before", "after", "is_new"),
    [
        ("losses.py", "import", "import math as m\nimport", True),
        ("trainers/whole_step.py", "import", "import math as m\nimport", True),
        ("demo/models.py", "import", "import math as m\nimport", True),
        ("losses.py", "\nimport", "\n# a comment\nimport", False),
        ("losses.py", '"""', '"""In other words: ', False),
        ("cards/student_card.py", "import", "import math as m\nimport", False),
        ("experiments/report.py", "import", "import math as m\nimport", False),
    ],
)
def test_code_that_can_change_a_number_is_part_of_the_key(sources, file, before, after, is_new, tmp_path):
    stages = StageCache(tmp_path)
    old = stages.key("train", {})
    path = sources / file
    path.write_text(path.read_text().replace(before, after, 1))
    assert stages.key("train", {}) == old, "this process runs the code from the time of its start"
    assert (StageCache(tmp_path).key("train", {}) != old) == is_new


def test_models_of_the_demo_do_not_depend_on_losses(sources, tmp_path):
    def key() -> str:
        return StageCache(tmp_path, sources=cache.DEMO_SOURCES).key("pretrained", {})

    old = key()
    (sources / "losses.py").write_text("x = 1")
    assert key() == old
    (sources / "demo" / "worlds.py").write_text("x = 1")
    assert key() != old


def test_an_installed_package_is_known_by_its_version(sources, monkeypatch, tmp_path):
    monkeypatch.setattr(cache, "_is_installed", lambda: True)
    assert cache.code_versions() == cache.library_versions()


def test_a_failed_stage_is_not_there_and_keeps_what_it_has(tmp_path):
    stages = StageCache(tmp_path)

    def fail(directory):
        (directory / "half.txt").write_text("half")
        raise RuntimeError("the build failed")

    with pytest.raises(RuntimeError):
        stages.run("train", {}, fail)
    assert not (tmp_path / stages.key("train", {})).exists()

    def resume(directory):
        assert (directory / "half.txt").read_text() == "half"
        (directory / "result.txt").write_text("whole")

    assert (stages.run("train", {}, resume) / "result.txt").read_text() == "whole"


def test_a_killed_stage_leaves_nothing_finished_and_no_lock(tmp_path):
    script = textwrap.dedent(
        f"""
        import os, signal
        from pathlib import Path
        from w2s_hf.experiments.cache import StageCache
        StageCache(Path({str(tmp_path)!r})).run("train", {{}}, lambda directory: os.kill(os.getpid(), signal.SIGKILL))
        """
    )
    assert subprocess.run([sys.executable, "-c", script], env=os.environ).returncode == -signal.SIGKILL
    stages = StageCache(tmp_path)
    assert [path.suffix for path in tmp_path.iterdir() if path.is_dir()] == [".partial"]
    assert (stages.run("train", {}, write("a")) / "result.txt").exists()


def test_an_unfinished_checkpoint_is_not_resumed_from(tmp_path):
    assert last_complete_checkpoint(tmp_path / "missing") is None
    for step, state in ((5, '{"global_step": 5}'), (10, '{"global_step": 10}'), (15, '{"global_st'), (20, None)):
        (tmp_path / f"checkpoint-{step}").mkdir()
        if state is not None:
            (tmp_path / f"checkpoint-{step}" / "trainer_state.json").write_text(state)
    (tmp_path / "checkpoint-final").mkdir()  # somebody's own
    for remove in (False, True):
        assert len(list(tmp_path.iterdir())) == 5
        assert last_complete_checkpoint(tmp_path, remove=remove) == str(tmp_path / "checkpoint-10")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint-10", "checkpoint-5", "checkpoint-final"]
