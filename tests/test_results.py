"""Tests fingerprints of trainings on cards and in results, and the table of many results."""

import copy
import inspect
import json
import os
import re
import shutil

import numpy as np
import pandas as pd
import pytest
from helpers.cards import CARDS, card_of, results

from w2s_hf import CompletionConfig, RewardPairConfig, WeakToStrongConfig, read_results
from w2s_hf.cards.trained_with import fingerprint_of, plain
from w2s_hf.config import StudentConfig
from w2s_hf.experiments.config import ClassificationArguments
from w2s_hf.experiments.report import run_settings
from w2s_hf.leaderboard import read_card
from w2s_hf.modeling.spec import ModelSpec
from w2s_hf.training_settings import training_settings

CONFIGS = [WeakToStrongConfig, RewardPairConfig, CompletionConfig]


def settings(kind=WeakToStrongConfig, **options) -> dict:
    args = kind(**{"output_dir": "out", "use_cpu": True, "bf16": False, "per_device_train_batch_size": 8} | options)
    return json.loads(json.dumps(training_settings(args)))


@pytest.mark.parametrize("kind", CONFIGS)
def test_a_setting_that_changes_a_number_is_recorded(kind):
    before = settings(kind)
    for name, value in {
        "learning_rate": 1e-3, "adam_beta1": 0.8, "lr_scheduler_kwargs": {"a": 1}, "max_steps": 7, "warmup_steps": 3,
        "gradient_accumulation_steps": 2, "dataloader_drop_last": True, "neftune_noise_alpha": 1.0,
        "max_length": 33, "disable_dropout": False,
    }.items():  # fmt: skip
        assert settings(kind, **{name: value}) != before, name
    best = {"load_best_model_at_end": True, "eval_strategy": "steps", "save_steps": 2, "metric_for_best_model": "loss"}
    assert settings(kind, **best, eval_steps=1) != settings(kind, **best, eval_steps=2)


@pytest.mark.parametrize("kind", CONFIGS)
def test_how_the_same_training_is_computed_is_no_setting(kind, tmp_path):
    same = {
        "output_dir": str(tmp_path), "seed": 3, "data_seed": 4, "per_device_train_batch_size": 4,
        "gradient_accumulation_steps": 2, "per_device_eval_batch_size": 3, "gradient_checkpointing": True,
        "dataloader_num_workers": 0, "run_name": "mine", "logging_steps": 3, "report_to": "none", "save_steps": 5,
        "eval_accumulation_steps": 2, "hub_private_repo": True, "torch_compile": False, "tf32": None,
    }  # fmt: skip
    if kind is not CompletionConfig:
        same["max_tokens_per_micro_batch"] = 64
    assert settings(kind, **same) == settings(kind)


def test_settings_of_the_adapters_are_recorded_where_there_are_any():
    def student(**options) -> dict:
        args = ClassificationArguments(weak_model="a", student_model="b")
        training = WeakToStrongConfig(output_dir="out", use_cpu=True)
        return run_settings(args, training, StudentConfig(dtype="float32", **options)).student.to_dict()

    assert student(lora_dropout=0.1) != student() and student(use_rslora=True)["use_rslora"] is True
    assert student(use_peft=False, lora_dropout=0.1) == student(use_peft=False)
    assert student(model_revision="main", attn_implementation="eager") == student()


def test_a_fingerprint_is_that_of_values_and_not_of_how_they_are_written():
    assert fingerprint_of({"a": 2, "b": [1.5], "c": None}) == fingerprint_of({"b": [1.5], "a": 2.0})
    names = [f"name{number}" for number in range(30)]
    assert plain(set(names)) == sorted(names), "the order of a set changes from process to process"
    assert fingerprint_of({"a": names}) == fingerprint_of({"a": names[::-1]})
    assert len({fingerprint_of({"a": value}) for value in (1, True, "1", 1.5, [1, 2], [2, 1])}) == 6


def changed(**changes) -> dict:
    """Returns results with one changed value."""
    made = results()
    for path, value in changes.items():
        *parents, last = path.split("__")
        inner = made
        for parent in parents:
            inner = inner[int(parent) if parent.isdigit() else parent]
        inner[last] = value
    return made


@pytest.mark.parametrize(
    "change",
    [
        {"task": "other"}, {"settings__training__learning_rate": 1e-4}, {"settings__student__lora_r": 4},
        {"runs__0__students__0__model": "other"}, {"runs__0__students__0__weights": "abc"},
        {"runs__0__weak__model": "other"}, {"runs__0__weak__revision": "abc"}, {"dataset__id": "other"},
        {"dataset__revision": "other"}, {"runs__0__split_fingerprint": "abc"}, {"dataset__n_student_half": 11},
        {"dataset__conversion": "coin_flip"}, {"dataset__split_seed": 1}, {"preset": "demo"},
        {"settings__losses__naive": {"aux_coef": 0.5}}, {"versions__w2s_hf": "9"},
    ],
    ids=lambda change: next(iter(change)),
)  # fmt: skip
def test_another_experiment_has_another_fingerprint(change):
    assert card_of(changed(**change)).fingerprint != card_of(results()).fingerprint


@pytest.mark.parametrize(
    "change",
    [
        {"runs__0__seed": 5}, {"run_name": "mine"}, {"versions__torch": "9"}, {"wall_seconds": {}},
        {"runs__0__students__0__accuracy": 0.75}, {"runs__0__students__0__hardware": "GPU"},
        {"settings__losses__confidence": {"aux_coef": 0.5}}, {"dataset__n_links": 2},
    ],
    ids=lambda change: next(iter(change)),
)  # fmt: skip
def test_seeds_and_names_have_the_same_fingerprint(change):
    assert card_of(changed(**change)).fingerprint == card_of(results()).fingerprint


def test_the_demos_seeds_have_one_fingerprint_though_their_rows_differ():
    first, second = (
        changed(preset="demo", dataset__revision=f"world {seed}", runs__0__split_fingerprint=f"{seed}")
        for seed in (0, 1)
    )
    assert card_of(first).fingerprint == card_of(second).fingerprint


def test_a_card_gives_its_settings_and_its_name_back(tmp_path):
    card = card_of(changed(run_name="low rate", runs__0__split_fingerprint="abc", runs__0__weak__weights="123"))
    card.save(tmp_path / "README.md")
    read = read_card(tmp_path)
    assert (read.fingerprint, read.run_name, read.trained_with) == (card.fingerprint, "low rate", card.trained_with)
    text = (tmp_path / "README.md").read_text()
    assert "| run | low rate |" in text and f"`{card.fingerprint}`" in text


def test_a_local_model_is_known_by_its_weights_wherever_it_lies(tmp_path):
    rng = np.random.default_rng(0)
    weights = rng.bytes(1_000_000)
    changed = weights[:-2] + bytes([weights[-2] ^ 1]) + weights[-1:]
    for place, content in {"a": weights, "b": weights, "c": changed, "d": weights[:-1], "e": b""}.items():
        directory = tmp_path / place / "gpt2"
        directory.mkdir(parents=True)
        (directory / "config.json").write_text("{}")
        (directory / "model.safetensors").write_bytes(content)
        os.utime(directory / "model.safetensors", (len(place), ord(place)))
    found = {place: ModelSpec.find(str(tmp_path / place / "gpt2"), "--student_model") for place in "abcde"}
    assert {model.name for model in found.values()} == {"gpt2"} and found["a"].weights == found["b"].weights
    assert len({model.weights for model in found.values()}) == 4
    assert found["a"].named == {"model": "gpt2", "revision": None, "weights": found["a"].weights}


# ---- One table ----


@pytest.fixture
def outputs(tmp_path):
    """Output directories of two runs that differ in a setting, and of a third by an older version."""
    old = json.loads((CARDS / "boolq-bootstrap-demo" / "results.json").read_text())
    new = copy.deepcopy(old) | {"run_name": "second"}
    new["settings"]["training"]["learning_rate"] = 0.01
    del old["run_name"]
    for name, content in {"a": old, "b": new}.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "results.json").write_text(json.dumps(content))
    shutil.copytree(CARDS / "chess-demo", tmp_path / "deep" / "c")
    return tmp_path


def test_many_results_are_one_tidy_table(outputs):
    table = read_results(outputs)
    assert set(table["task"]) == {"boolq", "chess_puzzles"} and table["demo"].all()
    students = table[(table["role"] == "student") & (table["task"] == "boolq")]
    assert sorted(students["method"]) == sorted(2 * ["naive", "confidence", "bootstrap"])
    assert students["fingerprint"].nunique() == 6 and set(students["learning_rate"]) == {0.003, 0.01}
    assert set(students["run_name"].dropna()) == {"second"}
    stored = json.loads((outputs / "b" / "results.json").read_text())["runs"][0]
    row = students[(students["run_name"] == "second") & (students["method"] == "naive")].iloc[0]
    entry = stored["students"][0]
    for name in ("accuracy", "n", "pgr", "output"):
        assert row[name] == entry[name]
    assert [row["pgr_low"], row["pgr_high"]] == entry["pgr_ci95"]
    assert (row["weak_accuracy"], row["ceiling_accuracy"]) == (
        stored["weak"]["accuracy"],
        stored["ceiling"]["accuracy"],
    )
    roles = table[table["source"] == row["source"]]["role"].value_counts().to_dict()
    assert roles == {"weak": 1, "control": 1, "student": 3, "link": 2, "direct": 1, "ceiling": 1}
    weak = table[(table["role"] == "weak") & (table["source"] == row["source"])].iloc[0]
    assert pd.isna(weak["method"]) and weak["accuracy"] == stored["weak"]["accuracy"]


def test_files_directories_and_patterns_are_read_once(outputs):
    expected = read_results(outputs)
    several = [
        outputs / "a",
        outputs / "a" / "results.json",
        f"{outputs}/*/results.json",
        f"{outputs}/**/results.json",
    ]
    pd.testing.assert_frame_equal(read_results(several).sort_index(), expected, check_like=True)
    assert len(read_results(str(outputs / "a" / "results.json"))) == 9


@pytest.mark.parametrize(
    ("content", "message"), [('{"accuracy": 1}', " of schema 1"), ("{", ": ")], ids=["other keys", "no JSON"]
)
def test_what_is_no_results_is_said_or_passed_over(content, message, outputs):
    (outputs / "other").mkdir()
    (outputs / "other" / "results.json").write_text(content)
    assert len(read_results(outputs)["source"].unique()) == 3, "files of other programs are ignored"
    with pytest.raises(ValueError, match=f"other/results.json, expected a results.json{message}"):
        read_results(outputs / "other" / "results.json")


def test_files_of_another_kind_are_named_by_directories_and_patterns_alike(outputs, caplog):
    (outputs / "other").mkdir()
    (outputs / "other" / "results.json").write_text('{"accuracy": 1}')
    for source in (outputs, f"{outputs}/**/results.json"):
        caplog.clear()
        assert read_results(source)["source"].nunique() == 3
        assert f"{outputs / 'other' / 'results.json'} is skipped" in caplog.text


def test_a_student_that_two_files_report_is_named(outputs, caplog):
    once = read_results(outputs)
    assert "Several files" not in caplog.text, "two runs that share a supervisor are two trainings of students"
    shutil.copytree(outputs / "b", outputs / "copy of b")
    table = read_results(outputs)
    assert len(table) == len(once) + 9
    (warning,) = (text for text in caplog.messages if text.startswith("Several files contain the same student"))
    student = once[(once["run_name"] == "second") & (once["method"] == "naive") & (once["role"] == "student")].iloc[0]
    files = " and ".join(str(outputs / name / "results.json") for name in ("b", "copy of b"))
    assert f"naive, seed 0, fingerprint {student['fingerprint']}, in {files}" in warning
    columns = json.loads(warning[warning.index("[") : warning.index("]") + 1])
    pd.testing.assert_frame_equal(table.drop_duplicates(columns).reset_index(drop=True), once)


@pytest.mark.parametrize("missing", ["nowhere", "no*where/results.json", "other"])
def test_results_that_are_not_there_are_named(missing, tmp_path, monkeypatch):
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "results.json").write_text("{}")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match="a directory that contains results of experiments"):
        read_results(missing)


def test_committed_results_have_the_fingerprints_of_their_cards():
    for file in CARDS.glob("*/results.json"):
        for student in json.loads(file.read_text())["runs"][0]["students"]:
            card = read_card(file.parent / student["output"].split("/")[1])
            assert student["fingerprint"] == card.fingerprint


def test_the_example_of_the_docstring_runs(outputs, monkeypatch):
    (example,) = re.findall(r"```python\n(.*?)```", inspect.cleandoc(read_results.__doc__), flags=re.S)
    monkeypatch.chdir(outputs)
    (outputs / "outputs").mkdir()
    shutil.copytree(outputs / "a", outputs / "outputs" / "a")
    names: dict = {}
    exec(example, names)
    assert len(names["medians"]) == 3
