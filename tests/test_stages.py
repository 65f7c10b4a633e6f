"""Stages: whole or not there, keyed by everything that changes the result, resumed after a kill."""

import os
import signal
import subprocess
import sys
import textwrap
import time

import pytest

from w2s_hf.experiments.cache import Stages
from w2s_hf.trainers.checkpoints import last_complete_checkpoint


def write(text):
    return lambda directory: (directory / "result.txt").write_text(text)


def test_a_finished_stage_is_reused_and_a_changed_setting_is_another(tmp_path):
    stages = Stages(tmp_path)
    first = stages.run("train", {"learning_rate": 1e-3}, write("a"))
    again = stages.run("train", {"learning_rate": 1e-3}, write("never"))
    other = stages.run("train", {"learning_rate": 1e-4}, write("b"))
    assert first == again != other
    assert (first / "result.txt").read_text() == "a" and (other / "result.txt").read_text() == "b"
    assert (stages.n_built, stages.n_reused) == (2, 1)
    assert set(stages.seconds) == {"train"}


def test_a_reused_stage_says_how_long_it_took_to_build(tmp_path):
    first, second = Stages(tmp_path), Stages(tmp_path)
    first.run("train", {}, lambda directory: time.sleep(0.05))
    second.run("train", {}, write("never"))
    assert second.n_reused == 1 and second.seconds == first.seconds and first.seconds["train"] >= 0.05


def test_versions_are_part_of_the_key(tmp_path, monkeypatch):
    stages = Stages(tmp_path)
    before = stages.key("train", {})
    monkeypatch.setattr("w2s_hf.experiments.cache.library_versions", lambda: {"torch": "0.1"})
    assert stages.key("train", {}) != before


def test_a_failed_stage_is_not_there_and_keeps_what_it_has(tmp_path):
    stages = Stages(tmp_path)

    def fail(directory):
        (directory / "half.txt").write_text("half")
        raise RuntimeError("out of luck")

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
        from w2s_hf.experiments.cache import Stages
        Stages(Path({str(tmp_path)!r})).run("train", {{}}, lambda directory: os.kill(os.getpid(), signal.SIGKILL))
        """
    )
    assert subprocess.run([sys.executable, "-c", script], env=os.environ).returncode == -signal.SIGKILL
    stages = Stages(tmp_path)
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
