"""PGR of many students in one table, from their cards."""

import json
import os
import subprocess
import sys

import pandas as pd
import pytest
from hub_server import LoopbackHub
from huggingface_hub import HfApi, constants
from running import ROOT
from test_cards import card_of, results

from w2s_hf import Score, StudentCard
from w2s_hf.leaderboard import find_cards, leaderboard


def put(folder, name="boolq", method="naive", seed=0, **accuracies):
    made = results(name, method=method, output=f"students/{method}-seed{seed}")
    made["summary"][0]["method"] = method
    run = made["runs"][0]
    run["seed"] = seed
    for role, entry in {"weak": run["weak"], "student": run["students"][0], "ceiling": run["ceiling"]}.items():
        entry["model"] = f"me/{role}"
        entry["accuracy"] = accuracies.get(role, entry["accuracy"])
    folder.mkdir(parents=True)
    card_of(made).save(folder / "README.md")


@pytest.fixture
def students(tmp_path):
    put(tmp_path / "a" / "one", seed=0, student=0.65)  # PGR .25
    put(tmp_path / "a" / "two", seed=1, student=0.70)  # .5
    put(tmp_path / "a" / "three", seed=2, student=0.80, weak=0.5)  # 1
    put(tmp_path / "a" / "four", seed=3, weak=0.9)  # undefined
    put(tmp_path / "b", method="confidence", student=0.75)  # .75
    put(tmp_path / "c", name="chess")
    (tmp_path / "link").mkdir()
    StudentCard(task="boolq", weak=Score("a", 0.5, 10), student=Score("b", 0.6, 10)).save(
        tmp_path / "link" / "README.md"
    )
    return tmp_path


def test_seeds_come_together_and_undefined_ones_are_counted(students):
    table = leaderboard(find_cards([str(students)]))
    assert list(table["task"]) == ["boolq", "boolq", "chess"]
    confidence, naive = table.iloc[0], table.iloc[1]
    assert (confidence["method"], naive["method"]) == ("confidence", "naive"), "the highest PGR first"
    assert naive["pgr"] == pytest.approx(0.5) and naive["n_students"] == 4 and naive["n_undefined"] == 1
    assert (naive["pgr_low"], naive["pgr_high"]) == (pytest.approx(0.25), pytest.approx(1.0))
    assert naive["weak_accuracy"] == pytest.approx((0.6 + 0.6 + 0.5 + 0.9) / 4)
    assert (confidence["pgr_low"], confidence["pgr_high"]) == (0.2, 0.8), "of one seed, its interval"
    again = leaderboard(find_cards([str(students), str(students / "a" / "one")]))
    pd.testing.assert_frame_equal(again, table)


def test_what_is_no_student_is_said(students, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match="empty: there is no student's card"):
        find_cards([str(tmp_path / "empty")])
    with pytest.raises(FileNotFoundError, match="expected a student's directory or its id"):
        find_cards(["no/such/directory"])
    (tmp_path / "empty" / "README.md").write_text("---\ntags: [a]\n---\n")
    with pytest.raises(ValueError, match="as that of a student: it has no `weak_to_strong`"):
        find_cards([str(tmp_path / "empty")])


def test_the_recipe_reads_the_hub_and_this_disk(students, tmp_path):
    command = [sys.executable, str(ROOT / "recipes" / "leaderboard.py")]
    with LoopbackHub() as hub:
        hub.add("me/three", students / "a" / "three")
        environment = {**os.environ, **hub.environment(tmp_path / "home")}
        sources = ["me/three", str(students / "b")]
        process = subprocess.run(
            [*command, *sources, "--output", "t.json"], env=environment, cwd=tmp_path, capture_output=True, text=True
        )
        assert process.returncode == 0, process.stderr
        assert "1.00 [0.20, 0.80]" in process.stdout and "confidence" in process.stdout
        assert [entry["pgr"] for entry in json.loads((tmp_path / "t.json").read_text())] == pytest.approx([1.0, 0.75])
        missing = subprocess.run([*command, "me/nobody"], env=environment, capture_output=True, text=True)
        assert missing.returncode == 1 and "me/nobody: the Hub has no card of it" in missing.stderr


def test_a_hub_that_does_not_answer_is_said_at_once(monkeypatch):
    def refuse(*args, **kwargs):
        raise ConnectionError("refused")

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(HfApi, "model_info", refuse)
    with pytest.raises(ConnectionError, match="me/three: the Hub does not answer"):
        find_cards(["me/three"])
