"""Tests `--analyses` end to end on a small demo, and that students never get ground truth."""

import json

import numpy as np
import pytest
from helpers.models import make_tokenizer
from helpers.predictions import check_predictions
from helpers.running import ROOT, TINY, forked, numbers, recipe_here
from safetensors.numpy import load_file
from transformers import set_seed

from w2s_hf import StudentCard, WeakLabels
from w2s_hf.experiments import analyses as experiment_analyses
from w2s_hf.experiments.cli import parse_arguments
from w2s_hf.experiments.config import ANALYSES
from w2s_hf.experiments.finetuner import Finetuner
from w2s_hf.experiments.seed import further_seeds

CHESS_RECIPE = "chess.py"
ALL = [*TINY, "--analyses", *ANALYSES, "--n_snapshots", "3", "--prompt_shots", "2"]


@pytest.fixture(scope="module")
def analysed(cache, tmp_path_factory):
    """A small run with all analyses: its directory, its process and its results."""
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
    assert set(names) <= set(check_predictions(output)["role"])
    for name in names:
        assert f"\n0     {name}" in process.stdout and f"| 0 | {name} |" in (output / "report.md").read_text()
        assert run["analyses"]["prompting"]["prompted"][name]["n"] == run["weak"]["n"]
    (path,) = (output / "_stages").glob("prompted-*/arrays.safetensors")
    answers = load_file(path)["probabilities"]
    n = run["weak"]["n"]
    assert len(answers) == n + 1 + 4 * n  # the prompts of all test rows, and those of a text without content
    assert len({part.tobytes() for part in (answers[:n], *np.split(answers[n + 1 :], 4))}) == 5
    assert "| prompt | accuracy | at the median | content-free | AUROC |" in (output / "report.md").read_text()


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
    # Two filters may drop the same rows. No student is trained on the uncorrected weak labels a second time.
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
    options = [*TINY, "--analyses", "agreement", "--output_dir", output]
    refused = recipe_here(*options, cache=cache)
    assert refused.returncode == 1 and "for the analyses overfitting prompting" in refused.stderr
    fewer = recipe_here(*options, "--overwrite_output_dir", "true", cache=cache)
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
        (
            "boolq.py",
            "--analyses agreement agreement",
            "got duplicate names: agreement agreement. Remove one agreement",
        ),
        (CHESS_RECIPE, "--analyses saliency", "expected some of overfitting, agreement."),
        ("anthropic_hh.py", "--analyses prompting", "expected some of overfitting, agreement"),
        ("sweep.py", "--analyses agreement", "Got --analyses"),
        ("boolq.py", "--n_snapshots 0", "--n_snapshots: got 0"),
        ("boolq.py", "--keep_confident 1.5", "a share in (0, 1]"),
        (CHESS_RECIPE, "--keep_confident 0.5", "completions are text"),
        ("boolq.py", "--n_supervisors 2 --methods bootstrap", "expected one supervisor and all"),
        ("boolq.py", "--keep_confident 0.5 --methods bootstrap", "expected one supervisor and all"),
        ("boolq.py", "--ladder a b --methods naive", "--analyses agreement to compare them"),
        ("boolq.py", "--ladder a b --student_model c --analyses agreement", "expected one of --ladder a b"),
    ],
)
def test_what_cannot_be_is_refused(name, options, words, cache, tmp_path):
    process = recipe_here(*options.split(), "--output_dir", tmp_path, cache=cache, name=name)
    assert process.returncode == 2 and words in " ".join(process.stderr.split()), process.stderr[-2000:]


GENERATIVE = "--generative_finetuning true --generative_learning_rate 3e-3".split()


@pytest.mark.slow
@pytest.mark.parametrize(("name", "more"), [("anthropic_hh.py", GENERATIVE), (CHESS_RECIPE, [])])
def test_pairs_and_puzzles_have_the_analyses_of_answers(name, more, cache, tmp_path):
    options = [*TINY, *more, "--analyses", "overfitting", "agreement", "--n_snapshots", "2", "--methods", "naive"]
    process = recipe_here(*options, "--output_dir", tmp_path, cache=cache, name=name)
    assert process.returncode == 0, process.stderr[-3000:]
    (run,) = numbers(tmp_path)["runs"]
    # The student of the experiment is cached among the sizes, also after generative finetuning.
    of_student = run["analyses"]["agreement"]["students"]["naive"][run["students"][0]["model"]]
    assert of_student["accuracy"] == run["students"][0]["accuracy"]
    assert of_student["agreement"] == run["students"][0]["agreement"]
    assert len(list(tmp_path.glob("_stages/student-naive-*/"))) == len(run["analyses"]["agreement"]["sizes"])
    assert ("brier" in of_student) == (name != CHESS_RECIPE)
    watched = run["analyses"]["overfitting"]["methods"]["naive"]
    assert watched["steps"] == [2, 3] and watched["stops"]["last_step"]["accuracy"] == watched["test_ground_truth"][-1]
    assert {path.name for path in (tmp_path / "figures").glob("*.png")} >= {"overfitting.png", "agreement.png"}


def test_seeds_of_further_supervisors_can_be_set():
    assert further_seeds(3, 2) == [1_000_006, 2_000_009]
    (largest,) = further_seeds(2**32 - 1, 1)
    set_seed(largest)


@pytest.mark.slow
def test_several_supervisors_and_confident_labels(cache, tmp_path, monkeypatch):
    taught, finetune = {}, Finetuner.finetune

    def watched(self, name, model, rows, *args, **options):
        taught.setdefault(name, []).append(rows.train)
        return finetune(self, name, model, rows, *args, **options)

    monkeypatch.setattr(Finetuner, "finetune", watched)
    options = "--methods naive --n_supervisors 2 --keep_confident 0.5 --analyses saliency probes weak_errors".split()
    process = recipe_here(*TINY, *options, "--output_dir", tmp_path, cache=cache)
    assert process.returncode == 0, process.stderr[-3000:]
    members = [WeakLabels.load(path) for path in (tmp_path / "_stages").glob("weak-*/predictions")]
    mean = WeakLabels.load(tmp_path / "weak_labels" / "seed0")
    assert len(members) == 2 and not np.array_equal(*(member.of(mean.ids) for member in members))
    expected = np.mean([member.of(mean.ids) for member in members], axis=0)
    np.testing.assert_allclose(mean.probabilities, expected, atol=1e-6)

    all_ids = list(taught["ceiling"][0]["id"])
    kept = [row_id for row_id, is_kept in zip(all_ids, mean.most_confident(all_ids, 0.5), strict=True) if is_kept]
    assert len(all_ids) == 48 and len(kept) in (24, 25)
    for name in ("student-naive", "control", "student-simulated", "student-told"):
        assert [list(rows["id"]) for rows in taught[name]] == [kept] * len(taught[name]), name
    assert all(set(rows["id"]) <= set(kept) for rows in taught["student-mended"])
    assert min(len(rows) for rows in taught["student-mended"]) < len(kept), "nothing was filtered"
    assert all(text.endswith((": no ?", ": yes ?")) for rows in taught["student-told"] for text in rows["text"])
    assert set(taught["strong-on-weak-half"][0]["id"]) == set(taught["weak"][0]["id"]), (
        "it has the training rows of the supervisor"
    )

    results = json.loads((tmp_path / "results.json").read_text())
    settings, report = results["settings"]["training"], (tmp_path / "report.md").read_text()
    assert results["runs"][0]["weak"]["label_confidence"] == pytest.approx(mean.of(kept).max(axis=1).mean())
    assert settings["weak supervisors, of which the labels are the mean"] == 2
    assert settings["weak labels that students learn, the most confident"] == 0.5
    assert "weak supervisor, mean of 2" in report and "share 0.5 of rows with the most confident" in report
    assert results["runs"][0]["analyses"]["probes"]["labels"]["as they are"]["n_train"] == len(kept)


@pytest.mark.slow
def test_of_a_chain_alone_the_analyses_are_about_another_student(cache, tmp_path):
    options = "--methods bootstrap --link_rows same --analyses agreement --ladder pretrained-32x2 pretrained-64x2"
    process = recipe_here(*TINY, *options.split(), "--output_dir", tmp_path, cache=cache)
    assert process.returncode == 0, process.stderr[-3000:]
    (run,) = numbers(tmp_path)["runs"]
    assert list(run["analyses"]["agreement"]["students"]) == ["naive"]
    direct = run["students"][0]["direct"]["same_rows"]["accuracy"]
    assert run["analyses"]["agreement"]["students"]["naive"]["demo/pretrained-64x2"]["accuracy"] == direct
    assert (
        "on the labels of the weak supervisor (method naive), not the student of the chain"
        in (tmp_path / "report.md").read_text()
    )


def test_cells_of_a_sweep_have_no_analyses(cache, tmp_path):
    config = tmp_path / "cells.yaml"
    config.write_text((ROOT / "w2s_hf" / "configs" / "demo.yaml").read_text() + "analyses: [agreement]\n")
    options = "--weak_models scratch-32x1 --student_models pretrained-64x2 --methods naive --cell_config".split()
    process = recipe_here(*options, config, "--output_dir", tmp_path / "out", cache=cache, name="sweep.py")
    assert process.returncode == 1 and "Got --analyses in --cell_config" in process.stderr, process.stderr[-2000:]
    assert not (tmp_path / "out" / "_stages").exists()


@pytest.mark.slow
def test_models_that_4_bits_do_not_go_with_are_not_compared(cache, tmp_path):
    options = [*TINY, "--load_in_4bit", "true", "--methods", "naive", "--analyses", "agreement"]
    process = recipe_here(*options, "--output_dir", tmp_path, cache=cache)
    assert process.returncode == 0, process.stderr[-3000:]
    assert (
        "--load_in_4bit: got the models pretrained-16x2, pretrained-32x2 to compare, which are too narrow"
        in process.stderr
    )
    (run,) = numbers(tmp_path)["runs"]
    assert run["analyses"]["agreement"]["sizes"] == ["demo/pretrained-64x2"]


def test_a_ladder_to_compare_is_no_chain(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["recipes/boolq.py"])
    config, ladder = ROOT / "w2s_hf" / "configs" / "demo.yaml", ["--ladder", "pretrained-16x2", "pretrained-64x2"]
    args = parse_arguments("", config, [*ladder, "--analyses", "agreement"])[0]
    assert args.methods == ["naive", "confidence"] and args.demo_world == "plain" and args.n_links == 0
    assert args.sizes == ladder[1:]
    args = parse_arguments("", config, ladder)[0]
    assert "bootstrap" in args.methods and args.demo_world == "ladder" and args.sizes == []


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (
            "--analyses prompting",
            "--analyses prompting: got model of type 'bert', expected a decoder",
        ),
        ("--analyses agreement --ladder {other} {student}", "--ladder: got models with the names model, model"),
    ],
)
def test_models_are_looked_at_before_anything_is_trained(options, words, cache, tmp_path, model_of):
    for name in ("student", "other"):
        model_of("bert").save_pretrained(tmp_path / name / "model")
        make_tokenizer().save_pretrained(tmp_path / name / "model")
    student, other = (tmp_path / name / "model" for name in ("student", "other"))
    models = ["--weak_model", student, "--student_model", student, "--dataset_path", tmp_path, "--use_cpu", "true"]
    options = options.format(student=student, other=other).split()
    process = recipe_here(*models, *options, "--output_dir", tmp_path / "out", cache=cache)
    assert process.returncode == 1 and words in process.stderr, process.stderr[-2000:]
    assert not (tmp_path / "out").exists()


def test_an_analysis_that_fails_takes_nothing_with_it(cache, tmp_path):
    options = [*TINY, "--methods", "naive", "--analyses", "prompting", "--prompt_shots", "40"]
    process = recipe_here(*options, "--output_dir", tmp_path, cache=cache)
    assert process.returncode == 1 and "Use fewer examples (--prompt_shots)" in process.stderr
    (run,) = numbers(tmp_path)["runs"]
    assert "analyses" not in run and (tmp_path / run["students"][0]["output"] / "README.md").is_file()


def untrained(output, name: str) -> dict[str, np.ndarray]:
    """Returns results of the base alone. Those of finetuned models differ between ranks in the last digits."""
    for path in output.glob(f"_stages/{name}-*/stage.json"):
        arrays = load_file(path.with_name("arrays.safetensors"))
        # Hidden states of the weak half are a cached step of their own.
        if json.loads(path.read_text())["settings"].get("trained") is None and "weak_half" not in arrays:
            return arrays
    raise AssertionError(f"no stage {name}")


@pytest.mark.distributed
@pytest.mark.slow
def test_two_ranks_find_the_same(analysed, cache, tmp_path):
    output, _, results = analysed
    options = [*TINY, "--per_device_train_batch_size", "16", "--analyses", "saliency", "prompting", "probes"]
    options += ["--prompt_shots", "2", "--output_dir", tmp_path]
    process = forked(ROOT / "recipes" / "boolq.py", *options, n_ranks=2, W2S_HF_CACHE=str(cache))
    assert process.returncode == 0, process.stderr[-3000:]
    for name in ("prompted", "hidden-states"):
        one, two = (untrained(directory, name) for directory in (output, tmp_path))
        assert one.keys() == two.keys()
        for key in one:
            np.testing.assert_allclose(one[key], two[key], atol=1e-5)
    found = numbers(tmp_path)["runs"][0]["analyses"]["probes"]["labels"]
    expected = results["runs"][0]["analyses"]["probes"]["labels"]
    assert {way: entry["n_train"] for way, entry in found.items()} == {
        way: entry["n_train"] for way, entry in expected.items()
    }
