"""Tests of adding methods to published results (`results/run.py --only_methods`)."""

import copy
import json
import sys
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
from helpers.predictions import check_predictions
from helpers.results_pages import write_made_up_results, write_tables
from helpers.running import ROOT

from w2s_hf.experiments.settings.classification import LINEAR_PROBE
from w2s_hf.results import PREDICTIONS, ExperimentResult, read_predictions
from w2s_hf.results.predictions import write_predictions

sys.path.insert(0, str(ROOT / "results"))
import compare  # noqa: E402
import run  # noqa: E402

SEEDS, METHODS = [0, 1], ["naive", "confidence", "product"]


def write_part(folder: Path, whole: Path, methods: list[str], change=lambda content: None) -> Path:
    """Writes the part of results that a run with these methods has, and returns its folder."""
    content = copy.deepcopy(json.loads((whole / "results.json").read_text()))
    for each in content["runs"]:
        each["students"] = [student for student in each["students"] if student["method"] in methods]
    content["summary"] = [each for each in content["summary"] if each["method"] in methods]
    content["settings"]["losses"] = {name: {"loss_type": name} for name in methods}
    change(content)
    folder.mkdir(parents=True)
    (folder / "results.json").write_text(json.dumps(content))
    predictions = read_predictions(whole / PREDICTIONS)
    write_predictions(predictions[~predictions["role"].isin(set(METHODS) - set(methods))], folder / PREDICTIONS)
    return folder


@pytest.fixture
def whole(tmp_path):
    """Returns the folder of the results of a run with all methods."""
    write_made_up_results(tmp_path / "whole", SEEDS, METHODS)
    return tmp_path / "whole"


def test_merged_results_are_those_of_one_run(whole, tmp_path):
    def without_prompts(content):
        content["wall_seconds"] = {"weak": 12.0, "student-product": 30.0, "total": 4.0}
        for each in content["runs"]:
            del each["analyses"]
            each["self_trained"] = {"accuracy": 0.5, "ci95": [0.4, 0.6], "n": 400, "pgr": 0.0}

    published = write_part(tmp_path / "published", whole, ["naive", "confidence"])
    added = write_part(tmp_path / "added", whole, ["naive", "product"], without_prompts)
    results, predictions = compare.merge(published, added)
    expected = ExperimentResult.read(whole / "results.json").to_dict()
    merged = results.to_dict()
    assert {each.pop("self_trained")["accuracy"] for each in merged["runs"]} == {0.5}
    for name in ("runs", "summary", "settings"):  # also in the same order
        assert merged[name] == expected[name]
    published_seconds = ExperimentResult.read(published / "results.json").wall_seconds
    assert published_seconds["weak"] != 12.0
    assert merged["wall_seconds"] == {**published_seconds, "student-product": 30.0}
    results.write(published / "results.json")
    write_predictions(predictions, published / PREDICTIONS)
    order = ["seed", "role", "id"]
    there = read_predictions(whole / PREDICTIONS).sort_values(order).to_dict("list")
    here = predictions.sort_values(order).to_dict("list")
    assert [list(value) for value in here.pop("prediction")] == [list(value) for value in there.pop("prediction")]
    assert here == there
    again, same = compare.merge(published, added)  # a command that is repeated changes nothing
    assert again.to_dict() == results.to_dict() and len(same) == len(predictions)


def test_results_that_only_one_run_has_are_kept(whole, tmp_path):
    score = {"accuracy": 0.75, "n": 40, "pgr": 0.5}
    model = {"model": "a", "accuracy": 0.5, "n": 40}

    def with_transfer(content):
        own = {"method": "naive", "accuracy_mean": 0.5, "difference": 0.25, "difference_ci95": [0, 0.5], "n_better": 2}
        content["self_trained"] = own | {"n_seeds": 2}
        transfer(content)

    def transfer(content):
        for each in content["runs"]:
            students = [{"method": student["method"], **score} for student in each["students"]]
            of_task = {"dataset": "d", "revision": "r", "n_shared": 0, "weak": model, "ceiling": model}
            each["transfer"] = {"other": of_task | {"students": students}}

    published = write_part(tmp_path / "published", whole, ["naive", "confidence"], with_transfer)
    added = write_part(tmp_path / "added", whole, ["naive", "product"], transfer)
    results, _ = compare.merge(published, added)
    assert results.self_trained.difference == 0.25
    for each in results.runs:
        assert [student.method for student in each.transfer["other"].students] == METHODS


def other_versions(content):
    content["versions"] = {"torch": "2.14.0"}


def other_rows(content):
    content["runs"][1]["split_fingerprint"] = "another"


def other_settings(content):
    content["settings"]["training"] = {"learning_rate": 0.1}


def one_seed(content):
    content["runs"].pop()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (other_versions, "versions {'torch': '2.14.0'}"),
        (other_rows, "splits"),
        (other_settings, "settings"),
        (one_seed, r"seeds \[0\]"),
    ],
)
def test_results_of_another_experiment_are_not_added(change, message, whole, tmp_path):
    published = write_part(tmp_path / "published", whole, ["naive", "confidence"])
    added = write_part(tmp_path / "added", whole, ["naive", "product"], change)
    with pytest.raises(ValueError, match=f"Got {message}.*without --only_methods"):
        compare.merge(published, added)


@pytest.mark.parametrize("role", ["weak", "ceiling", "naive", "zero-shot"])
def test_a_model_with_other_predictions_is_noticed(role, whole, tmp_path):
    published = write_part(tmp_path / "published", whole, ["naive", "confidence"])
    added = write_part(tmp_path / "added", whole, ["naive", "product"])
    predictions = read_predictions(added / PREDICTIONS)
    (position, *_) = predictions.index[(predictions["role"] == role) & (predictions["seed"] == 1)]
    predictions.at[position, "prediction"] = predictions.at[position, "prediction"] * 0.75 + 0.125
    write_predictions(predictions, added / PREDICTIONS)
    with pytest.raises(ValueError, match=f"other predictions of {role}, seed 1, .*0 of 400 classes differ"):
        compare.merge(published, added)


def other_scores_of_probe(content):
    for each in content["runs"]:
        for baseline in each["baselines"]:
            baseline["ece"] = 0.123


@pytest.mark.parametrize(("change", "is_refused"), [(0.01, False), (1.0, True)])
def test_a_linear_probe_may_be_rounded_differently(change, is_refused, whole, tmp_path):
    published = write_part(tmp_path / "published", whole, ["naive", "confidence"])
    added = write_part(tmp_path / "added", whole, ["naive", "product"], other_scores_of_probe)
    predictions = read_predictions(added / PREDICTIONS)
    (position, *_) = predictions.index[predictions["role"] == LINEAR_PROBE]
    mixed = (1 - change) * predictions.at[position, "prediction"] + change * predictions.at[position, "prediction"][
        ::-1
    ]
    predictions.at[position, "prediction"] = mixed.astype(np.float32)
    write_predictions(predictions, added / PREDICTIONS)
    with pytest.raises(ValueError, match="1 of 400 classes differ") if is_refused else nullcontext():
        results, merged = compare.merge(published, added)
        assert [each.baselines for each in results.runs] == [
            each.baselines for each in ExperimentResult.read(published / "results.json").runs
        ]
        kept = merged[merged["role"] == LINEAR_PROBE].iloc[0]["prediction"]
        assert list(kept) == list(read_predictions(published / PREDICTIONS).at[position, "prediction"])


def test_a_chain_is_not_added(capsys):
    with pytest.raises(SystemExit):
        run.main(["sst2", "--only_methods", "bootstrap"])
    assert "--only_methods: got bootstrap" in capsys.readouterr().err


def test_a_method_is_added_to_published_results(whole, tmp_path, monkeypatch, capsys):
    options = {"task": "sst2", "seeds": SEEDS, "methods": ["naive", "confidence"], "analyses": ["prompting"]}
    # Other methods and analyses that are listed, and not published, are not said to be published.
    listed = options | {
        "methods": ["naive", "product", "window", "confidence"],
        "analyses": ["prompting", "overfitting"],
    }
    tables = write_tables(tmp_path / "list", {"sst2": {"title": "SST-2", "recipe": "recipes/nlp.py"}}, listed)
    folder, outputs, commands = tables.parent / "sst2", tmp_path / "out", []
    command = ["sst2", "--tables", str(tables), "--outputs", str(outputs), "--only_methods", "product"]
    monkeypatch.setattr(run, "library_versions", lambda: {"torch": "2.13.0"})

    def is_refused(message, *further):
        with pytest.raises(SystemExit):
            run.main([*command, *further])
        assert message in capsys.readouterr().err

    is_refused("got no sst2/predictions.parquet")
    write_part(folder, whole, ["naive", "confidence"])
    facts = {"trained": ["2026-01-02", "2026-01-03"], "options": options | {"aux_coef": 0.75}}
    facts["published_by"] = {"threads": run.machine()["threads"] + 1}
    (folder / "run.json").write_text(json.dumps(facts))
    is_refused("got sst2 with aux_coef=None in tables.yaml or its configuration, expected 0.75")
    (folder / "run.json").write_text(json.dumps(facts | {"options": options}))
    is_refused(f"got {run.machine()['threads']} threads, expected {run.machine()['threads'] + 1}")
    facts["published_by"] = run.machine()
    (folder / "run.json").write_text(json.dumps(facts | {"options": options}))
    with monkeypatch.context() as other:
        other.setattr(run, "library_versions", lambda: {"torch": "2.14.0"})
        is_refused("got other versions of torch than the published results of sst2")
        other.setattr(run, "library_versions", dict)
        is_refused("got other versions of torch than the published results of sst2")
    is_refused("expected none. Use two commands", "--add_seeds", "2")
    is_refused("--check", "--check")

    def launch(command):
        commands.append(" ".join(command))
        part = write_part(outputs / "added", whole, ["naive", "product"])
        (outputs / "sst2" / "students" / "product-seed0").mkdir(parents=True)
        (outputs / "sst2" / "students" / "product-seed0" / "adapter_model.safetensors").touch()
        for path in part.iterdir():
            path.rename(outputs / "sst2" / path.name)

    monkeypatch.setattr(run, "launch", launch)
    monkeypatch.setattr(run, "revision", lambda: "0" * 12)
    run.main(command)
    (words,) = commands
    assert words.partition("--methods ")[2].startswith("naive product --")
    assert "confidence" not in words and "--analyses" not in words
    facts = json.loads((folder / "run.json").read_text())
    assert facts["options"]["methods"] == ["naive", "confidence", "product"]
    assert facts["trained"][0] == "2026-01-02" and facts["trained"][1] > "2026-01-03"
    assert facts["command"].endswith("--analyses prompting") and "naive confidence product" in facts["command"]
    check_predictions(folder)
