"""Tests the table of many students, which is read from their cards."""

import json
import os
import subprocess
import sys

import pandas as pd
import pytest
import yaml
from helpers.cards import CARDS, card_of, results
from helpers.hub_server import LoopbackHub
from helpers.running import ROOT
from huggingface_hub import HfApi, constants

from w2s_hf import Score, StudentCard
from w2s_hf.leaderboard import COLUMNS, find_cards, leaderboard, read_card, readable


def put(folder, name="boolq", method="naive", seed=0, settings=None, run_name=None, preset="custom", **accuracies):
    made = results(name, method=method, output=f"students/{method}-seed{seed}")
    made["summary"][0]["method"] = method
    made["settings"]["training"] |= settings or {}
    made["settings"]["losses"] = {"confidence": {"loss_type": "confidence", "aux_coef": 0.5}}
    made |= {"run_name": run_name, "preset": preset}
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
    assert (confidence["pgr_low"], confidence["pgr_high"]) == (0.2, 0.8), "a single seed has its interval"
    again = leaderboard(find_cards([str(students), str(students / "a" / "one")]))
    pd.testing.assert_frame_equal(again, table)


def test_two_learning_rates_are_two_rows_and_a_column(tmp_path):
    put(tmp_path / "a", settings={"learning_rate": 1e-3}, run_name="high", student=0.65)
    put(tmp_path / "b", settings={"learning_rate": 1e-4, "lora_dropout": 0.1}, run_name="low", student=0.75)
    put(tmp_path / "c", settings={"learning_rate": 1e-3}, run_name="again", seed=1, student=0.65)
    put(tmp_path / "d", method="confidence", settings={"learning_rate": 1e-3}, student=0.7)
    table = leaderboard(find_cards([str(tmp_path)]))
    assert table["n_students"].tolist() == [1, 1, 2] and table["fingerprint"].nunique() == 3
    assert list(table.columns[len(COLUMNS) :]) == ["learning_rate", "lora_dropout"], "no loss of one method alone"
    assert table["learning_rate"].tolist() == [1e-4, 1e-3, 1e-3]
    assert table["lora_dropout"].tolist() == [0.1, None, None]
    assert table["run_name"].fillna("").tolist() == ["low", "", "high, again"]
    shown = readable(table)
    assert list(shown.columns[4:7]) == ["learning_rate", "lora_dropout", "run"] and shown["run"][1] == "-"
    same = leaderboard(find_cards([str(tmp_path / "a"), str(tmp_path / "c")]))
    assert len(same) == 1 and list(same.columns) == list(COLUMNS), "settings without differences have no column"


def test_tasks_are_not_compared_with_each_other(tmp_path):
    put(tmp_path / "a", settings={"learning_rate": 1e-3})
    put(tmp_path / "b", name="chess", settings={"learning_rate": 1e-4})
    assert list(leaderboard(find_cards([str(tmp_path)])).columns) == list(COLUMNS)


def test_rows_of_a_demo_are_never_those_of_its_task(tmp_path):
    put(tmp_path / "a", student=0.65)
    put(tmp_path / "b", student=0.75, preset="demo", seed=1)
    table = leaderboard(find_cards([str(tmp_path)]))
    assert table["task"].tolist() == ["boolq", "boolq (demo: generated rows)"] and len(table) == 2
    card = (CARDS / "boolq-demo" / "naive-seed0" / "README.md").read_text()
    (tmp_path / "README.md").write_text(card.replace("  preset: demo\n", ""))
    assert read_card(tmp_path).is_demo, "older cards show this by their dataset only"


def without_settings(folder) -> None:
    """Tests a card by an older version."""
    page = folder / "README.md"
    begin, front, text = page.read_text().split("---\n", 2)
    data = yaml.safe_load(front)
    for name in ("fingerprint", "dataset", "n_rows", "settings", "versions"):
        del data["weak_to_strong"][name]
    page.write_text(f"---\n{yaml.safe_dump(data)}---\n{text}")


def test_older_cards_are_read_and_pooled_only_where_they_can_be_seeds(tmp_path):
    for name, seed, accuracy in (("a", 0, 0.65), ("b", 1, 0.7), ("c", 2, 0.75)):
        put(tmp_path / name, seed=seed, student=accuracy)
        without_settings(tmp_path / name)
    table = leaderboard(find_cards([str(tmp_path)]))
    assert table["n_students"].tolist() == [3] and table["fingerprint"].tolist() == [None]
    put(tmp_path / "d", seed=0, student=0.8)
    without_settings(tmp_path / "d")
    assert leaderboard(find_cards([str(tmp_path)]))["n_students"].tolist() == [1, 1, 1, 1], "two of seed 0 differ"
    put(tmp_path / "e", seed=0, student=0.85, settings={"learning_rate": 1})
    mixed = leaderboard(find_cards([str(tmp_path)]))
    assert len(mixed) == 5 and list(mixed.columns) == list(COLUMNS), "an unknown setting does not count as different"


def test_settings_of_a_stranger_cannot_replace_a_column(tmp_path):
    put(tmp_path / "a", settings={"pgr": 1, "task": "sciq"}, student=0.65)
    put(tmp_path / "b", settings={"pgr": 2}, seed=1, student=0.75)
    table = leaderboard(find_cards([str(tmp_path)]))
    assert table["pgr"].tolist() == pytest.approx([0.75, 0.25]) and table["setting pgr"].tolist() == [2, 1]
    assert set(table["task"]) == {"boolq"}


@pytest.mark.parametrize(
    ("name", "error", "message"),
    [
        ("empty", FileNotFoundError, "empty: got a directory without the card of a student"),
        ("no/such/directory", FileNotFoundError, "expected the directory of a student or its id"),
        ("other", ValueError, "is not a valid student card: its front matter has no `weak_to_strong`"),
    ],
)
def test_what_is_no_student_is_said(name, error, message, tmp_path, monkeypatch):
    (tmp_path / "empty").mkdir()
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "README.md").write_text("---\ntags: [a]\n---\n")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(error, match=message):
        find_cards([name])


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
        assert missing.returncode == 1 and "me/nobody: the Hub has no model card that you may read" in missing.stderr


def test_a_hub_that_does_not_answer_is_said_at_once(monkeypatch):
    def refuse(*args, **kwargs):
        raise ConnectionError("refused")

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(HfApi, "model_info", refuse)
    with pytest.raises(ConnectionError, match="me/three: the Hub does not answer"):
        find_cards(["me/three"])
