"""Tests chains of students in the recipes: labels and rows of each link, and the baselines in the report."""

import gc
import hashlib
import json
import re
import shutil

import numpy as np
import pytest
from helpers.predictions import check_predictions
from helpers.running import SMALL, TINY, numbers, recipe_here
from transformers import PreTrainedModel

from w2s_hf import WeakCompletions, WeakLabels
from w2s_hf.experiments import finetuner
from w2s_hf.experiments.config import ClassificationArguments
from w2s_hf.experiments.finetuner import Finetuner
from w2s_hf.leaderboard import read_card
from w2s_hf.trainers import WeakToStrongTrainer

LADDER = ["pretrained-16x2", "pretrained-32x2", "pretrained-64x2"]
CHAIN = [*SMALL, "--methods", "naive", "bootstrap"]


def hash_of(directory) -> dict[str, str]:
    return {str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(directory.rglob("*.*"))}


@pytest.fixture(scope="module")
def climbed(cache, tmp_path_factory):
    """
    Returns a small run, its finetuning calls, the hashes of each link, and the models alive when a base is loaded.
    """
    output, taught, hashes, alive = tmp_path_factory.mktemp("chain") / "out", [], {}, []
    finetune, load_base = Finetuner.finetune, finetuner.load_base

    def watched_finetune(self, name, model, rows, predict, **options):
        finetuned = finetune(self, name, model, rows, predict, **options)
        taught.append((name, model, rows.train, rows.validation, finetuned.directory))
        for file, digest in hash_of(finetuned.directory / "model").items():
            hashes.setdefault(file, digest)  # the first version
        return finetuned

    def watched_load(model, *args):
        gc.collect()
        alive.append((model.name, sum(isinstance(thing, PreTrainedModel) for thing in gc.get_objects())))
        return load_base(model, *args)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Finetuner, "finetune", watched_finetune)
        patch.setattr(finetuner, "load_base", watched_load)
        process = recipe_here(*CHAIN, "--output_dir", output, cache=cache)
    assert process.returncode == 0, process.stderr[-3000:]
    return output, process, numbers(output), taught, hashes, alive


def test_each_link_learns_the_labels_of_the_one_before_it_and_nothing_else(climbed):
    output, _, results, taught, _, _ = climbed
    links = results["runs"][0]["students"][1]["links"]
    assert [link["model"] for link in links] == [f"demo/{name}" for name in LADDER]
    assert [link["taught_by"] for link in links] == ["demo/scratch-32x1", *(f"demo/{name}" for name in LADDER[:2])]
    trained = [entry for entry in taught if entry[0] in ("link", "student-bootstrap")]
    assert [entry[1].name for entry in trained] == [link["model"] for link in links]
    before = None
    for number, (link, (_, _, train, validation, stage)) in enumerate(zip(links, trained, strict=True), start=1):
        labels = WeakLabels.load(output / "weak_labels" / f"seed0-for-link{number}")
        assert labels.fingerprint == link["labels"]
        for rows in (train, validation):
            np.testing.assert_array_equal(np.array(rows["labels"][:], dtype=np.float32), labels.of(rows["id"][:]))
            assert "ground_truth" not in rows.column_names
        if before is None:
            assert labels.provenance["trained"].startswith("weak-")
        else:
            # The labels come from the trained predecessor.
            assert labels.provenance["stage"] == before[0] and labels.provenance["weak_labels"] == before[1]
        said = WeakLabels.load(stage / "predictions").provenance
        assert said["taught_by"] == labels.provenance["stage"] and said["weak_labels"] == labels.fingerprint
        before = (stage.name, labels.fingerprint)


def test_links_have_rows_of_their_own_and_take_none_from_others(climbed):
    _, _, results, taught, _, _ = climbed
    rows = {entry[0]: set(entry[2]["id"]) for entry in taught}
    parts = [set(entry[2]["id"]) for entry in taught if entry[0] in ("link", "student-bootstrap")]
    assert [len(part) for part in parts] == [160, 160, 160]
    assert not parts[0] & parts[1] and not (parts[0] | parts[1]) & (parts[2] | rows["weak"])
    assert parts[2] == rows["student-naive"] == rows["ceiling"]
    assert rows["student-direct"] == set().union(*parts), "as many rows as the chain has seen"
    links = results["runs"][0]["students"][1]["links"]
    assert [link["rows"] for link in links] == ["link_1", "link_2", "student_half"]


def test_what_is_finished_does_not_change(climbed):
    output, _, _, taught, hashes, _ = climbed
    assert len(taught) > 7 and hashes
    for path in {entry[4] for entry in taught}:
        for file, digest in hash_of(path / "model").items():
            assert hashes[file] == digest, f"{file} was changed after its training"
    for number in (1, 2):
        assert (output / "students" / f"bootstrap-seed0-link{number}" / "adapter_model.safetensors").is_file()


def test_no_model_is_alive_when_the_base_of_the_next_link_is_loaded(climbed):
    alive = climbed[5]
    loaded = [name for name, _ in alive]
    assert [name for name in loaded if name in ("demo/pretrained-16x2", "demo/pretrained-32x2")] == [
        "demo/pretrained-16x2",
        "demo/pretrained-32x2",
    ]
    counts = {name: count for name, count in alive}
    # Other tests of this process may hold models. A link that is not freed would increase their number.
    assert len(set(counts.values())) == 1, alive


def test_the_chain_is_reported_beside_direct_training(climbed):
    output, process, results, _, _, _ = climbed
    assert {"link_1", "link_2", "direct", "direct_all"} < set(check_predictions(output)["role"])
    naive, chain = results["runs"][0]["students"]
    assert chain["direct"]["same_rows"]["accuracy"] == naive["accuracy"]
    assert chain["direct"]["same_rows"]["pgr"] == naive["pgr"]
    summary = results["summary"][1]["direct"]
    for rows in ("same_rows", "all_rows"):
        direct = chain["direct"][rows]["accuracy"]
        assert summary[rows]["accuracy_mean"] == direct
        assert summary[rows]["n_chain_is_better"] == int(chain["accuracy"] > direct)
    assert chain["links"][-1]["accuracy"] == chain["accuracy"]
    report = (output / "report.md").read_text()
    for words in ("bootstrap, link 1", "bootstrap, link 2", "student, naive on the rows of all links"):
        assert words in process.stdout and words in report
    assert "The chain is better in" in process.stdout
    page = (output / "students" / "bootstrap-seed0" / "README.md").read_text()
    assert "was trained on labels of demo/pretrained-32x2" in page and "| 2 | demo/pretrained-32x2 |" in page
    assert read_card(output / "students" / "bootstrap-seed0").pgr == chain["pgr"]
    page = (output / "students" / "bootstrap-seed0-link1" / "README.md").read_text()
    assert "was trained on labels of demo/scratch-32x1" in page and "no ceiling was trained for this link" in page


def test_stopped_inside_a_link_it_goes_on_there(climbed, cache, tmp_path):
    """Steps of a run without a chain are not repeated for a run with a chain."""
    output, _, expected, taught, _, _ = climbed
    shutil.copytree(output / "_stages", tmp_path / "out" / "_stages")
    kept = {entry[4].name for entry in taught if entry[0] in ("weak", "ceiling", "student-naive", "control")}
    for stage in (tmp_path / "out" / "_stages").iterdir():
        if stage.name not in kept:
            shutil.rmtree(stage) if stage.is_dir() else stage.unlink()
    steps, train_step = [], WeakToStrongTrainer.training_step

    def stopped(self, *args, **kwargs):
        steps.append(self.state.global_step)
        if len(steps) == 17:  # 10 steps per link
            raise KeyboardInterrupt
        return train_step(self, *args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(WeakToStrongTrainer, "training_step", stopped)
        process = recipe_here(*CHAIN, "--output_dir", tmp_path / "out", cache=cache)
    assert process.returncode == 130 and "Stopped. Repeat the command to resume the run" in process.stderr
    process = recipe_here(*CHAIN, "--output_dir", tmp_path / "out", cache=cache)
    assert process.returncode == 0, process.stderr[-3000:]
    links = re.findall(r"link \d of \d of the chain.*\((cached|resumed)", process.stderr)
    assert links == ["cached", "resumed"]
    assert numbers(tmp_path / "out") == expected


def test_on_the_same_rows_all_links_learn_the_student_half(climbed, cache, tmp_path):
    shutil.copytree(climbed[0] / "_stages", tmp_path / "out" / "_stages")
    options = ["--ladder", LADDER[0], LADDER[2], "--link_rows", "same", "--output_dir", tmp_path / "out"]
    process = recipe_here(*CHAIN, *options, cache=cache)
    assert process.returncode == 0, process.stderr[-3000:]
    results = numbers(tmp_path / "out")
    assert results["dataset"]["n_links"] == 0
    (chain,) = [student for student in results["runs"][0]["students"] if student["method"] == "bootstrap"]
    assert [link["rows"] for link in chain["links"]] == ["student_half", "student_half"]
    assert set(chain["direct"]) == {"same_rows"}


@pytest.mark.slow
@pytest.mark.parametrize("name", ["anthropic_hh.py", "chess.py"])
def test_other_settings_climb_by_the_same_lines(name, cache, tmp_path):
    if name == "chess.py":
        pytest.importorskip("chess")
    process = recipe_here(*TINY, "--ladder", *_ladder_of(name), "--output_dir", tmp_path, cache=cache, name=name)
    assert process.returncode == 0, process.stderr[-3000:]
    results = json.loads((tmp_path / "results.json").read_text())
    chain = results["runs"][0]["students"][-1]
    assert chain["method"] == "bootstrap" and set(chain["direct"]) == {"same_rows", "all_rows"}
    models = [f"demo/{model}" for model in _ladder_of(name)]
    assert [link["model"] for link in chain["links"]] == models
    assert [link["taught_by"] for link in chain["links"]] == ["demo/scratch-32x1", models[0]]
    kind = WeakCompletions if name == "chess.py" else WeakLabels
    (of_link,) = tmp_path.glob("_stages/link-*[0-9a-f]/predictions")
    assert chain["links"][1]["labels"] == kind.load(of_link).fingerprint, (
        "the labels are the predictions of the previous link"
    )
    assert "bootstrap, link 1" in process.stdout


def _ladder_of(name: str) -> list[str]:
    return ["pretrained-64x1", "pretrained-64x2"] if name == "chess.py" else [LADDER[0], LADDER[2]]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"ladder": []}, "got --ladder .nothing., expected two or more"),
        ({"ladder": ["a", "a"]}, "different models"),
        ({"ladder": ["a", "b"], "student_model": "a"}, "expected one of --ladder a b with another model before it"),
        ({"ladder": ["a", "b"], "student_model": "c"}, "got --student_model c"),
        ({"ladder": ["a", "b"], "weak_model": "a"}, "only the models between it and the student count"),
        ({"ladder": ["a", "b"], "link_rows": "new"}, "link_rows"),
    ],
)
def test_ladders_that_lead_nowhere_are_refused(values, message):
    with pytest.raises(ValueError, match=message):
        ClassificationArguments(methods=["bootstrap"], **values)


def test_the_student_is_the_last_of_the_ladder_where_no_other_is_named():
    args = ClassificationArguments(methods=["naive", "bootstrap"], ladder=["a", "b", "c"])
    assert args.student_model == "c" and args.chain == ["a", "b"] and args.n_links == 2
    args = ClassificationArguments(methods=["bootstrap"], ladder=["a", "b", "c"], weak_model="a")
    assert args.chain == ["b"], "above the supervisor"
    args = ClassificationArguments(methods=["bootstrap"], ladder=["a", "b", "c"], student_model="b")
    assert args.chain == ["a"] and args.n_links == 2, "the rows of a link are the same for every student"


def test_a_ladder_without_its_method_is_refused(cache, tmp_path):
    process = recipe_here("--ladder", *LADDER, "--methods", "naive", "--output_dir", tmp_path, cache=cache)
    assert process.returncode == 2 and "Add --methods bootstrap to train a chain" in process.stderr


def test_narrow_models_are_not_quantized(cache, tmp_path):
    process = recipe_here(*CHAIN, "--load_in_4bit", "true", "--output_dir", tmp_path, cache=cache)
    assert process.returncode == 1 and "narrower than the blocks of 64" in process.stderr
