"""Tests that results.json and the cards of the committed runs are read and written unchanged."""

import copy
import json
import re
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest
from helpers import compare_results

from w2s_hf import read_results
from w2s_hf.cards import StudentCard
from w2s_hf.results import ExperimentResult, SeedResult, TrainingSettings, schema
from w2s_hf.results.record import Record

FILES = sorted((Path(__file__).parents[1] / "model_cards").glob("*/results.json"))
OF_EACH = pytest.mark.parametrize("file", FILES, ids=lambda file: file.parent.name)


@OF_EACH
def test_results_are_read_and_written_without_a_loss(file, tmp_path):
    results = ExperimentResult.read(file)
    assert results.to_dict() == json.loads(file.read_text())
    results.write(tmp_path / "results.json")
    assert (tmp_path / "results.json").read_text() == file.read_text(), "the order of the keys, too"


def test_unknown_keys_are_kept():
    content = json.loads(FILES[0].read_text())
    run = content["runs"][0]
    for part in (content, run, run["weak"], run["students"][0], content["dataset"], content["settings"]):
        part["a new fact"] = {"value": None}
    results = ExperimentResult.from_dict(content)
    assert results.to_dict() == content and results.runs[0].weak.scores["a new fact"] == {"value": None}


def test_all_records_keep_unknown_keys():
    kinds = [kind for kind in vars(schema).values() if isinstance(kind, type) and issubclass(kind, Record)]
    assert len(kinds) > 10
    for kind in kinds:
        assert any(part.metadata.get("rest") for part in fields(kind)) or kind is Record, kind


def test_a_missing_key_is_named():
    content = json.loads(FILES[0].read_text())["runs"][0]
    del content["ceiling"]
    with pytest.raises(ValueError, match="SeedResult: got no 'ceiling', expected this key"):
        SeedResult.from_dict(content)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"runs": None}, "ExperimentResult.runs: got 'None', expected a list"),
        ({"runs": [3]}, "ExperimentResult.runs: got '3', expected a mapping"),
        ({"settings": []}, "ExperimentResult.settings: got '[]', expected a mapping"),
        ({"task": None}, "ExperimentResult.task: got 'None', expected a text"),
        ({"chance": "half"}, "ExperimentResult.chance: got 'half', expected a number"),
    ],
)
def test_a_value_of_another_kind_is_named_with_its_file(change, message, tmp_path):
    (tmp_path / "results.json").write_text(json.dumps(json.loads(FILES[0].read_text()) | change))
    for read in (ExperimentResult.read, read_results):
        with pytest.raises(
            ValueError, match=re.escape(f"{tmp_path / 'results.json'}, expected") + ".*" + re.escape(message)
        ):
            read(tmp_path / "results.json")


def test_settings_are_attributes_whatever_they_are_called_in_json():
    content = {"learning_rate": 0.1, "early stopping": "none (last step)", "weak supervisor, weight_decay": 0.0}
    content["weak labels that students learn, the most confident"] = 0.5
    settings = TrainingSettings.from_dict(content)
    assert settings.keep_confident == 0.5 and settings.weak_weight_decay == 0.0 and settings.n_supervisors is None
    assert settings.arguments == {"learning_rate": 0.1} and list(settings.to_dict().items()) == list(content.items())


@OF_EACH
def test_results_are_taken_as_records_and_as_json_values(file):
    content = json.loads(file.read_text())
    before = copy.deepcopy(content)
    results = ExperimentResult.read(file)
    for run, run_content in zip(results.runs, content["runs"], strict=True):
        for student, student_content in zip(run.students, run_content["students"], strict=True):
            card = StudentCard.from_results(results, run, student)
            assert card.fingerprint == student.fingerprint
            assert card == StudentCard.from_results(content, run_content, student_content)
            for link, link_content in zip(student.links, student_content.get("links", []), strict=True):
                as_json = {"method": student.method, **link_content}
                card = StudentCard.from_results(results, run, student, link)
                assert card.render() == StudentCard.from_results(content, run_content, as_json).render()
    assert content == before


@OF_EACH
def test_cards_are_rendered_as_committed(file):
    results = ExperimentResult.read(file)
    for run in results.runs:
        for student in run.students:
            card = StudentCard.from_results(results, run, student)
            card.has_figure = True
            assert card.render() == (file.parent / Path(student.output).name / "README.md").read_text()


def test_two_results_are_compared_without_their_times(tmp_path):
    first = json.loads(FILES[0].read_text())
    second = copy.deepcopy(first) | {"wall_seconds": {}}
    assert not list(compare_results.differences(first, second))
    second["runs"][0]["students"][0]["accuracy"] = 0.0
    del second["chance"]
    paths = [tmp_path / "a.json", tmp_path / "b.json"]
    for path, content in zip(paths, (first, second), strict=True):
        path.write_text(json.dumps(content))
    changed = {".runs[0].students[0].accuracy: ", ".chance: only in the first"}
    for pair, status, said in ((paths, 1, changed), (paths[:1] * 2, 0, {"equal except for times"})):
        command = [sys.executable, compare_results.__file__, *map(str, pair)]
        process = subprocess.run(command, capture_output=True, text=True)
        assert process.returncode == status
        assert all(words in process.stdout for words in said), process.stdout
        assert len(process.stdout.splitlines()) == len(said)
