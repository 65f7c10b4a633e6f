"""`--analyses` as a user meets it, on a demo made small; and that no ground truth gets to a student."""

import json
import re
from dataclasses import replace

import numpy as np
import pytest
from running import ROOT, TINY, numbers, recipe_here
from safetensors.numpy import load_file
from test_chess_recipe import NAME as CHESS_RECIPE
from test_completion import make_character_tokenizer
from test_finetuning import bench_of
from transformers import Trainer

from w2s_hf import StudentCard, WeakLabels
from w2s_hf.analysis import ANALYSES
from w2s_hf.config import StudentConfig
from w2s_hf.experiments import analyses as experiment_analyses
from w2s_hf.experiments.analyses import agreement, overfitting, probes
from w2s_hf.experiments.arguments import parse_arguments
from w2s_hf.experiments.classification import ClassificationExperiment
from w2s_hf.experiments.finetuning import Model, Workbench
from w2s_hf.experiments.stages import Stages
from w2s_hf.experiments.study import Study
from w2s_hf.labels import Completion
from w2s_hf.tasks import find_task
from w2s_hf.tasks.dealing import TaskSplits

ALL = [*TINY, "--analyses", *ANALYSES, "--n_snapshots", "3", "--prompt_shots", "2"]


@pytest.fixture(scope="module")
def analysed(cache, tmp_path_factory):
    """A small run with all analyses: its directory, what it printed, its numbers."""
    output = tmp_path_factory.mktemp("analysed") / "out"
    process = recipe_here(*ALL, "--output_dir", output, cache=cache)
    assert process.returncode == 0, process.stderr[-3000:]
    return output, process, numbers(output)


def test_all_names_are_there():
    assert list(experiment_analyses._ALL) == list(ANALYSES)


def test_every_analysis_leaves_numbers_a_figure_and_a_section(analysed):
    output, _, results = analysed
    report = (output / "report.md").read_text()
    (run,) = results["runs"]
    assert list(run["analyses"]) == list(ANALYSES)
    for name, title in ANALYSES.items():
        assert f"\n## {title}\n" in report and f"](figures/{name}.png)" in report
        assert (output / "figures" / f"{name}.png").stat().st_size > 10_000
    assert "NaN" not in (output / "results.json").read_text(), "no JSON"


def test_stops_are_read_off_the_curves(analysed):
    _, _, results = analysed
    (run,) = results["runs"]
    for of_method in run["analyses"]["overfitting"]["methods"].values():
        assert of_method["steps"] == [1, 2, 3]
        for name, curve in (("weak_labels", "validation_weak_labels"), ("ground_truth", "validation_ground_truth")):
            stop = of_method["stops"][name]
            position = of_method["steps"].index(stop["step"])
            assert of_method[curve].index(max(of_method[curve])) == position
            assert stop["accuracy"] == of_method["test_ground_truth"][position]
            assert stop["agreement"]["overall"] == of_method["test_weak_labels"][position]
        assert of_method["stops"]["last_step"]["step"] == 3


def test_the_stop_that_cheats_says_so_wherever_it_is(analysed):
    output, _, _ = analysed
    results = json.loads((output / "results.json").read_text())
    (run,) = results["runs"]
    stops = run["analyses"]["overfitting"]["methods"]["naive"]["stops"]
    assert {name: stop["cheats"] for name, stop in stops.items()} == {
        "last_step": False, "weak_labels": False, "ground_truth": True,
    }  # fmt: skip
    report, card = (output / "report.md").read_text(), (output / "students" / "naive-seed0" / "README.md").read_text()
    assert "| naive | ground truth (cheats) |" in report and "**Early stopping by ground truth cheats**" in report
    assert "| ground truth, **which cheats**" in card and "a diagnostic" in card
    assert StudentCard.from_results(results, run, run["students"][0]).early_stopping == stops
    del run["analyses"]
    assert "cheats" not in StudentCard.from_results(results, run, run["students"][0]).render()


def test_agreement_compares_the_sizes_of_the_ladder(analysed):
    _, _, results = analysed
    (run,) = results["runs"]
    found = run["analyses"]["agreement"]
    assert found["sizes"] == [f"demo/pretrained-{size}x2" for size in (16, 32, 64)]
    for student in run["students"]:
        of_largest = found["students"][student["method"]]["demo/pretrained-64x2"]
        assert of_largest["accuracy"] == student["accuracy"] and of_largest["agreement"] == student["agreement"]
        assert of_largest["ece"] == student["ece"]
    assert len({entry["misfit"] for entry in found["students"]["naive"].values()}) == 3


def test_prompted_models_are_baselines_of_the_table(analysed):
    output, process, results = analysed
    (run,) = results["runs"]
    names = ["zero-shot", "2-shot, weak labels", "2-shot, ground truth"]
    assert [entry["name"] for entry in run["baselines"]] == names
    for name in names:
        assert f"\n0     {name}" in process.stdout and f"| 0 | {name} |" in (output / "report.md").read_text()
        assert run["analyses"]["prompting"]["prompted"][name]["n"] == run["weak"]["n"]
    asked = [
        load_file(path / "arrays.safetensors") for path in (output / "_stages").glob("prompted-*") if path.is_dir()
    ]
    assert len(asked) == 3 and len({array["probabilities"].tobytes() for array in asked}) == 3


def test_saliency_is_about_the_student_and_the_ceiling_of_the_run(analysed):
    _, _, results = analysed
    (run,) = results["runs"]
    found = run["analyses"]["saliency"]["accuracies"]
    assert found["ft(weak)"]["accuracy"] == run["students"][0]["accuracy"]
    assert found["ft(gt)"]["accuracy"] == run["ceiling"]["accuracy"] and found["ft(gt)"]["pgr"] in (1.0, None)
    assert list(found) == ["lp(weak)", "lp(gt)", "ft(weak)", "ft(weak)+lp(gt)", "ft(gt)"]


def test_probes_change_the_labels_that_students_learn(analysed):
    output, _, results = analysed
    found = results["runs"][0]["analyses"]["probes"]["labels"]
    assert found["as they are"]["n_train"] == found["relabelled by kNN"]["n_train"] == 48
    assert found["filtered by kNN"]["n_train"] == found["filtered by logistic"]["n_train"] == 43
    assert 2 <= found["filtered by topology"]["n_train"] <= 48
    assert found["as they are"]["accuracy"] == results["runs"][0]["students"][0]["accuracy"]
    # Two filters may drop the same rows; nobody learns the weak labels as they are a second time.
    learned = [
        json.loads(path.read_text())["settings"]["train"] for path in output.glob("_stages/student-*/stage.json")
    ]
    assert len(list(output.glob("_stages/student-mended-*/stage.json"))) >= 3 and len(set(learned)) >= 3


def test_simulated_supervisors_are_as_accurate_as_the_real_one(analysed):
    _, _, results = analysed
    (run,) = results["runs"]
    found = run["analyses"]["weak_errors"]["supervisors"]
    assert {entry["supervisor"] for entry in found.values()} == {run["weak"]["accuracy"]}
    assert list(found)[-2:] == ["told, naive", "told, confidence"]
    features = run["analyses"]["weak_errors"]["features"]
    assert [entry["k"] for entry in features] == [2, 4, 8, 16, 32, 64]


def test_a_second_run_trains_nothing_and_asks_nothing(analysed, cache):
    output, _, results = analysed
    process = recipe_here(*ALL, "--output_dir", output, cache=cache)
    assert process.returncode == 0 and "Nothing was trained" in process.stderr, process.stderr[-3000:]
    assert numbers(output) == results


def test_an_analysis_of_a_finished_run_keeps_its_numbers(analysed, cache, tmp_path):
    output, _, results = analysed
    fewer = recipe_here(*TINY, "--analyses", "agreement", "--output_dir", output, cache=cache)
    assert fewer.returncode == 0 and "Nothing was trained" in fewer.stderr
    (before,), (after,) = results["runs"], numbers(output)["runs"]
    assert list(after["analyses"]) == ["agreement"] and "baselines" not in after
    assert (
        after["students"] == before["students"] and after["analyses"]["agreement"] == before["analyses"]["agreement"]
    )
    assert "## Saliency" not in (output / "report.md").read_text()


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("boolq.py", "--analyses salience", "expected some of overfitting, agreement"),
        ("boolq.py", "--analyses agreement agreement", "each once"),
        (CHESS_RECIPE, "--analyses saliency", "expected some of overfitting, agreement, each once"),
        ("anthropic_hh.py", "--analyses prompting", "expected some of overfitting, agreement"),
        ("sweep.py", "--analyses agreement", "Got --analyses"),
        ("boolq.py", "--n_snapshots 0", "--n_snapshots: got 0"),
        ("boolq.py", "--keep_confident 1.5", "a share in (0, 1]"),
        (CHESS_RECIPE, "--keep_confident 0.5", "moves are text"),
        ("boolq.py", "--n_supervisors 2 --methods bootstrap", "which has one"),
        ("boolq.py", "--ladder a b --methods naive", "nor --analyses agreement"),
    ],
)
def test_what_cannot_be_is_refused(name, options, words, cache, tmp_path):
    process = recipe_here(*options.split(), "--output_dir", tmp_path, cache=cache, name=name)
    assert process.returncode == 2 and words in " ".join(process.stderr.split()), process.stderr[-2000:]


@pytest.mark.parametrize("name", ["anthropic_hh.py", CHESS_RECIPE])
def test_pairs_and_puzzles_have_the_analyses_of_answers(name, cache, tmp_path):
    options = [*TINY, "--analyses", "overfitting", "agreement", "--n_snapshots", "2", "--methods", "naive"]
    process = recipe_here(*options, "--output_dir", tmp_path, cache=cache, name=name)
    assert process.returncode == 0, process.stderr[-3000:]
    (run,) = numbers(tmp_path)["runs"]
    of_student = run["analyses"]["agreement"]["students"]["naive"][run["students"][0]["model"]]
    assert of_student["accuracy"] == run["students"][0]["accuracy"]
    assert of_student["agreement"] == run["students"][0]["agreement"]
    assert ("brier" in of_student) == (name != CHESS_RECIPE)
    watched = run["analyses"]["overfitting"]["methods"]["naive"]
    assert watched["steps"] == [2, 3] and watched["stops"]["last_step"]["accuracy"] == watched["test_ground_truth"][-1]
    assert {path.name for path in (tmp_path / "figures").glob("*.png")} >= {"overfitting.png", "agreement.png"}


def test_several_supervisors_and_confident_labels(cache, tmp_path):
    options = [*TINY, "--methods", "naive", "--n_supervisors", "2", "--keep_confident", "0.5"]
    process = recipe_here(*options, "--output_dir", tmp_path, cache=cache)
    assert process.returncode == 0, process.stderr[-3000:]
    members = [WeakLabels.load(path) for path in (tmp_path / "_stages").glob("weak-*/predictions")]
    mean = WeakLabels.load(tmp_path / "weak_labels" / "seed0")
    assert len(members) == 2 and not np.array_equal(*(member.of(mean.ids) for member in members))
    expected = np.mean([member.of(mean.ids) for member in members], axis=0)
    np.testing.assert_allclose(mean.probabilities, expected, atol=1e-6)
    assert "student pretrained-64x2 on 24 weak labels" in process.stderr.replace("demo/", "")
    assert "ceiling pretrained-64x2 on 48 rows" in process.stderr.replace("demo/", "")
    settings = json.loads((tmp_path / "results.json").read_text())["settings"]["training"]
    assert settings["weak supervisors, of which the labels are the mean"] == 2
    assert settings["weak labels that students learn, the most confident"] == 0.5


# ---- In parts ----

MARKER = 777


@pytest.fixture(scope="module")
def study(cache, tmp_path_factory):
    """A finished experiment, and an empty place for the stages of more."""
    output = tmp_path_factory.mktemp("study")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("W2S_HF_CACHE", str(cache))
        patch.setattr("sys.argv", ["recipes/boolq.py"])
        options = [*TINY, "--output_dir", str(output / "first")]
        args, *others = parse_arguments("", ROOT / "recipes" / "configs" / "demo.yaml", options, announce=False)
        experiment = ClassificationExperiment(find_task("boolq"), args, *others)
        args.analyses = ["agreement"]  # for its models, which are loaded
        run, materials = experiment.run_seed(0), experiment.materials(0)
    bench = Workbench(Stages(output / "more"), experiment.training_args, experiment.setting)
    run = replace(run, lessons=replace(run.lessons, bench=bench))
    return Study(args, experiment.setting, materials, run, experiment.world(0))


def test_a_watched_training_ends_as_one_without_early_stopping(study):
    lessons, weak = study.lessons, study.run.weak_labels
    plain = {"load_best_model_at_end": False, "metric_for_best_model": None, "eval_strategy": "no"}
    asked = [study.splits.student_validation, study.test]
    plain["method"] = "confidence"
    unwatched, stage = (
        lessons.on_labels("s", study.materials.student, {"student": weak}, asked, n_snapshots=n_snapshots, **plain)
        for n_snapshots in (0, 2)
    )
    expected = lessons.labels_of(unwatched)
    assert lessons.labels_of(stage).fingerprint == expected.fingerprint
    by_step = {path.name: lessons.labels_of(path) for path in (stage / "snapshots").iterdir()}
    assert set(by_step) == {"step-2", "step-3"} and by_step["step-3"].fingerprint == expected.fingerprint
    assert by_step["step-2"].fingerprint != expected.fingerprint and by_step["step-2"].provenance["step"] == 2


@pytest.fixture
def collated(monkeypatch):
    """Everything that a collator is given, of training, validation and prediction, as text."""
    seen = []

    def recording(method):
        original = getattr(Trainer, method)

        def dataloader(self, *args, **kwargs):
            inner = self.data_collator

            def collate(features):
                seen.append(repr(features))
                return inner(features)

            self.data_collator = collate
            try:
                return original(self, *args, **kwargs)
            finally:
                self.data_collator = inner

        monkeypatch.setattr(Trainer, method, dataloader)

    for method in ("get_train_dataloader", "get_eval_dataloader", "get_test_dataloader"):
        recording(method)
    return seen


def marked(batch: str) -> bool:
    """Is the marker in it, as a number of its own? (Probabilities have it among their digits.)"""
    return re.search(rf"(?<![\d.]){MARKER}(?!\d)", batch) is not None


def test_ground_truth_is_seen_by_no_collator_of_a_student(study, monkeypatch, collated):
    """A marker in the place of the truth about all rows that students, however taught, learn or are stopped by."""
    monkeypatch.setattr(TaskSplits, "__post_init__", lambda self: None)  # it would refuse such a class
    parts = {name: rows for name, rows in study.splits.parts.items() if name.startswith("student")}
    planted = {
        name: rows.remove_columns("ground_truth").add_column("ground_truth", [MARKER] * len(rows))
        for name, rows in parts.items()
    }
    lessons = study.lessons.of_rows(**planted)
    assert set(lessons.rows("student")[0]["ground_truth"]) == {MARKER}
    planted_study = replace(study, run=replace(study.run, lessons=lessons))
    for analysis in (overfitting, agreement, probes):
        analysis(planted_study)
    stages = lessons.bench.stages.root.iterdir()
    trained = {path.name.rsplit("-", 1)[0] for path in stages if path.is_dir()}
    assert trained >= {"watched-naive", "watched-confidence", "student-naive", "student-mended", "hidden-states"}
    assert len(collated) > 50 and any("labels" in batch for batch in collated)
    assert not [batch for batch in collated if marked(batch) or "ground_truth" in batch]
    # It would be seen, and whoever learned the ground truth of these rows would learn the marker.
    assert marked(repr([{"labels": MARKER}])) and marked(repr([{"labels": [float(MARKER), 0.0]}]))
    with pytest.raises(ValueError, match=str(MARKER)):
        lessons.on_ground_truth("ceiling", study.materials.student, "student", [study.test])


@pytest.mark.parametrize("kind", ["reward", "chess"])
def test_ground_truth_is_seen_by_no_collator_of_other_students(kind, tmp_path, collated):
    bench, rows = bench_of(kind, tmp_path, tmp_path / "model")
    setting, ids = bench.setting, list(rows["id"])
    if kind == "chess":
        marker, answers = " Zz9", [Completion(" e4", is_cut=False)] * len(rows)
        tokens = make_character_tokenizer()(marker.strip(), add_special_tokens=False)["input_ids"]
        seen_as = ", ".join(map(str, tokens))
        assert len(set(tokens)) == 3, "the tokenizer does not know the marker"
    else:
        marker, answers, seen_as = MARKER, np.tile([0.25, 0.75], (len(rows), 1)), str(MARKER)
    planted = rows.remove_columns("ground_truth").add_column("ground_truth", [marker] * len(rows))
    labelled = setting.labels(ids, answers, {}).join(planted)
    model = Model("m", str(tmp_path / "model"), "1", StudentConfig(dtype="float32", lora_r=4))
    options = {"seed": 0, "provenance": {}, "n_snapshots": 2}
    bench.finetune("student", model, labelled, labelled, [planted], **options)
    batches = [str(batch) for batch in collated]
    assert batches and not [batch for batch in batches if seen_as in batch or "ground_truth" in batch]
    if kind == "chess":
        truth = setting.with_ground_truth(planted)
        bench.finetune("ceiling", model, truth, truth, [planted], **options)
        assert any(seen_as in batch for batch in collated), "it would not be seen if it were there"
