"""Tests of the tables in docs/results.md and the README, and of the files in results/ behind them."""

import json
import os
import re
import runpy
import sys
from functools import partial
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import yaml
from filelock import FileLock
from helpers.predictions import check_predictions, write_made_up
from helpers.puzzles import random_rows
from helpers.results_pages import made_up_results, write_made_up_results, write_tables
from helpers.running import ROOT, recipe_here

from w2s_hf import TASKS, StudentConfig, WeakToStrongConfig
from w2s_hf.demo.rows import demo_pairs, demo_rows
from w2s_hf.experiments import cli
from w2s_hf.experiments.config import ClassificationArguments
from w2s_hf.experiments.report import run_settings
from w2s_hf.experiments.settings.classification import LINEAR_PROBE
from w2s_hf.methods import BOOTSTRAP, METHODS
from w2s_hf.metrics import difference_interval, rounded
from w2s_hf.results import (
    PREDICTIONS,
    SELF_TRAINED,
    ExperimentResult,
    PgrSummary,
    SelfTrainedSummary,
    read_predictions,
)
from w2s_hf.results.predictions import predictions_table, write_predictions
from w2s_hf.tasks import PREFERENCE_TASKS
from w2s_hf.tasks.chess import CHESS_PUZZLES

sys.path.insert(0, str(ROOT / "results"))
import build  # noqa: E402
import compare  # noqa: E402
import methods  # noqa: E402
import run  # noqa: E402

PAGE = run.read_page()
KEPT = sorted((ROOT / "results").glob("**/run.json"))
MACHINE = {"cpu": "a CPU", "cores": 2, "threads": 1, "instructions": "AVX2", "system": "Linux", "python": "3.12.1"}
COMMIT = r"[0-9a-f]{12}( with changes)?"
OPTIONS = {"task": "sst2", "seeds": [0, 1], "methods": ["naive", "confidence"]}


def test_readme_and_docs_say_what_the_files_say():
    assert build.build(check=True) == []
    for name in ("README.md", "docs/results.md"):
        assert not re.search(r"\bnan\b", (ROOT / name).read_text(encoding="utf-8"))


def is_current(facts: dict, each: run.Run) -> bool:
    """Returns whether published results have the command and the options of a run in tables.yaml."""
    listed = json.loads(json.dumps({"command": each.command, "options": each.resolved}))
    return listed == {"command": facts["command"], "options": facts["options"]}


def test_results_belong_to_the_runs_that_are_listed():
    """A run that was renamed, or whose options were changed, has no results until it is run again."""
    listed = {each.name: each for each in PAGE.runs}
    for path in KEPT:
        name, facts = path.parent.relative_to(ROOT / "results").as_posix(), json.loads(path.read_text())
        assert is_current(facts, listed[name]), f"{name}: run it again, or list its options in tables.yaml"
        results = ExperimentResult.read(path.parent / "results.json")
        assert [each.seed for each in results.runs] == listed[name].options["seeds"]
        assert [each.method for each in results.summary] == listed[name].options["methods"]
        assert set(results.runs[0].analyses) <= set(listed[name].options.get("analyses", []))
        assert all(re.fullmatch(r"\d{4}-\d\d-\d\d", day) for day in facts["trained"])
        by = facts["published_by"]
        assert re.fullmatch(COMMIT, by["commit"]) and set(MACHINE) <= set(by) and all(by.values())


def test_results_of_another_configuration_are_noticed(tmp_path, monkeypatch):
    each = PAGE.runs[0]
    facts = json.loads(json.dumps({"command": each.command, "options": each.resolved}))
    assert is_current(facts, each) and facts["options"]["learning_rate"] > 0
    content = (run.CONFIGS / "cpu_real.yaml").read_text()
    monkeypatch.setattr(run, "CONFIGS", tmp_path)
    for line, same in {"# a comment": True, "learning_rate: 1.0e-5": False}.items():
        (tmp_path / "cpu_real.yaml").write_text(f"{content}\n{line}\n")
        assert is_current(facts, each) == same


def test_files_have_no_rows_and_no_paths():
    for path in (ROOT / "results").glob("**/*.json"):
        run.check_publishable(json.loads(path.read_text()) | {"command": ""}, path.as_posix())
    for path in (ROOT / "results").glob(f"**/{PREDICTIONS}"):
        run.check_predictions(check_predictions(path.parent))


def test_ids_of_all_tasks_are_hashes(world):
    def is_publishable(ids):
        run.check_predictions(pd.DataFrame({"id": ids, "role": "weak"}))

    for task in TASKS.values():
        rows = demo_rows(task, world, 4, "train")
        is_publishable([example["id"] for row in rows for example in task.examples(row)])
    for task in PREFERENCE_TASKS.values():
        is_publishable([task.example(row)["id"] for row in demo_pairs(world, 4, "train pairs")])
    is_publishable([CHESS_PUZZLES.example(row)["id"] for row in random_rows(4)])
    for row_id in ("fork-7", "a phrase", "0123456789abcdef of a film"):
        with pytest.raises(ValueError, match="expected a hash"):
            is_publishable([row_id])


@pytest.mark.parametrize("each", PAGE.runs, ids=lambda each: each.name)
def test_every_command_is_one_that_its_recipe_reads(each, monkeypatch, capsys):
    """Stops before models and rows are loaded."""
    parsed = []
    parse = cli.parse_arguments

    def stop(*args, **kwargs):
        parsed.append(parse(*args, **kwargs))
        sys.exit("parsed")

    monkeypatch.setattr(cli, "parse_arguments", stop)
    monkeypatch.setattr("sys.argv", [each.recipe, *each.arguments])
    with pytest.raises(SystemExit, match="parsed"):
        runpy.run_path(str(ROOT / each.recipe), run_name="__main__")
    ((args, _, _),) = parsed
    assert args.seeds == each.options["seeds"] and args.methods == each.options["methods"] and not args.demo
    assert set(args.models) <= set(PAGE.models)


@pytest.fixture
def repository(tmp_path, monkeypatch):
    """A repository with the results of two tables, one of which has two runs."""
    monkeypatch.setattr(build, "difference_interval", partial(difference_interval, n_resamples=50))  # saves time
    tables = {
        "sst2": {"title": "SST-2, phrases", "short": "SST-2", "recipe": "recipes/nlp.py"},
        "pairs": {
            "title": "Pairs", "short": "Pairs", "recipe": "recipes/nlp.py", "options": {"seeds": [0]},
            "runs": {"as it is": {}, "in 4 bits": {"load_in_4bit": True}},
        },
        "later": {"title": "Later", "recipe": "recipes/nlp.py"},
    }  # fmt: skip
    path = write_tables(tmp_path / "results", tables, OPTIONS)
    for each in run.read_page(path).runs[:-1]:
        folder = path.parent / each.name
        write_made_up_results(folder, each.options["seeds"], each.options["methods"], zero_shot=each.name == "sst2")
        facts = {
            "command": each.command, "options": each.resolved, "trained": ["2026-01-01", "2026-01-02"],
            "published_by": {"commit": "0" * 12, **MACHINE},
        }  # fmt: skip
        (folder / "run.json").write_text(json.dumps(facts))
    (tmp_path / "README.md").write_text("before\n<!-- begin: python results/build.py -->\nold\n<!-- end -->\nafter\n")
    return tmp_path


def test_the_page_follows_the_files(repository):
    tables = repository / "results" / "tables.yaml"
    written = ["docs/results.md", "README.md", "docs/figures/results.png"]
    assert build.build(repository, tables) == written
    assert build.build(repository, tables, check=True) == []
    page, readme = (repository / "docs" / "results.md").read_text(), (repository / "README.md").read_text()
    results = json.loads((repository / "results" / "sst2" / "results.json").read_text())
    mean = sum(each["weak"]["accuracy"] for each in results["runs"]) / 2
    assert "| model | SST-2 | Pairs, as it is | Pairs, in 4 bits |" in readme and "| seeds | 2 | 1 | 1 |" in readme
    assert f"| weak supervisor | {rounded(mean)} | " in readme and "old" not in readme
    assert readme.startswith("before\n") and readme.endswith("\nafter\n")
    for words in ("## SST-2, phrases", "### In 4 bits", "python results/run.py pairs/in_4_bits", "org/student (local"):
        assert words in page
    assert "Later" not in page and re.search(r"\| student, confidence \| -0\.\d+ \[-0\.\d+, .*\], 0 of 2 \| ", page)
    assert page.index("## Summary") < page.index("## Overview") < page.index("## Metrics and setup")
    assert re.search(r"- The naive student is more accurate than its supervisor in \d of 3 comparisons\. It is", page)
    assert "python results/run.py sst2` (2 minutes), " in readme and "on CPU (2026-01-01 to 2026-01-02)." in page
    assert "org/student was read from a local copy: rounded." in page and "at the median" in page

    # A changed number makes all three files out of date.
    results["runs"][0]["weak"]["accuracy"] = 0.5
    (repository / "results" / "sst2" / "results.json").write_text(json.dumps(results))
    assert build.build(repository, tables, check=True) == written
    (repository / "README.md").write_text("no markers")
    with pytest.raises(ValueError, match="expected each marker once"):
        build.build(repository, tables)


def test_the_summary_counts_the_directions():
    outcomes = {("naive", "weak"): "above", ("confidence", "naive"): "below", ("zero-shot", "naive"): "below"}
    rows = [build.Direction("a", *pair, "", outcome, "") for pair, outcome in outcomes.items()]
    rows.append(build.Direction("b", "confidence", "naive", "", "not distinguishable", ""))
    rows.append(build.Direction("b", "errors that confidence copies,", "that naive copies", "", "above", ""))
    assert build.summary(rows) == [
        "The naive student is more accurate than its supervisor in 1 of 1 comparisons. "
        "It is less accurate in 0 of 1, and not distinguishable in 0 of 1.",
        "The untrained student with a zero-shot prompt is more accurate than the naive student in 0 of 1 comparisons. "
        "It is less accurate in 1 of 1, and not distinguishable in 0 of 1.",
    ]
    assert build.methods_summary(rows).splitlines()[2:] == ["| confidence | 2 | 0 | 1 | 1 |"]


def test_a_figure_of_other_code_is_drawn_again(repository, monkeypatch):
    tables = repository / "results" / "tables.yaml"
    build.build(repository, tables)
    monkeypatch.setitem(build.PALETTE, "blue", "#000000")
    assert build.build(repository, tables, check=True) == ["docs/figures/results.png"]


def test_without_results_page_and_readme_say_so(repository):
    tables = repository / "results" / "tables.yaml"
    for path in tables.parent.glob("**/results.json"):
        path.unlink()
    assert build.build(repository, tables) == ["docs/results.md", "README.md"]
    assert "No run has been published" in (repository / "README.md").read_text()
    assert build.build(repository, tables, check=True) == []
    prompt = {"task": "sst2", "form": "01", "n": 200, "accuracy": 0.5, "auroc": 0.625}
    prompt |= {"accuracy_at_median": 0.75, "accuracy_content_free": 0.875, "ci95": [0.4375, 0.5625]}
    above = prompt | {"task": "cola", "ci95": [0.5625, 0.75]}
    (tables.parent / "prompts").mkdir()
    settings = {"dtype": "float32", "max_length": 256, "n_test": 150, "batch_size": 8}
    content = {"model": "org/model", **settings, "results": [prompt, above]}
    (tables.parent / "prompts" / "prompts.json").write_text(json.dumps(content))
    build.build(repository, tables)
    page = (repository / "docs" / "results.md").read_text()
    assert "--data DIRECTORY --dtype float32 --max_length 256 --n_test 150 --batch_size 8`" in page
    assert "| sst2 | 200 |  | 0.500 / 0.750 / 0.875 / 0.625 |" in page
    assert (
        "on 0 of 0 tasks. The interval of the prompt for the answers 0 and 1 is above chance on 1 of 2 tasks (cola)."
        in page
    )


def test_a_comparison_has_three_outcomes(monkeypatch):
    ones, few = np.ones((2, 100)), np.tile(np.arange(100) < 3, (2, 1)).astype(float)
    assert build._difference(ones, few) == ("0.970 [0.930, 1.000]", "above")
    assert build._difference(few, ones)[1] == "below"
    assert build._difference(few, few) == ("0.000 [0.000, 0.000]", "not distinguishable")
    monkeypatch.setattr(build, "difference_interval", lambda *scores: (1e-17, 0.0675))
    assert build._difference(ones, few) == ("0.970 [0.000, 0.068]", "not distinguishable")


def test_pgr_of_all_runs_needs_a_gap(repository):
    groups = build.read_groups(run.read_page(repository / "results" / "tables.yaml"), repository / "results")
    assert "no clear gap" not in build.overview(groups, True)
    groups[0].entries[0].results.summary[1].pgr_ci95 = None
    assert build.overview(groups, True).count("(no clear gap)") == 1


def test_comparisons_are_those_of_predictions(repository):
    group, _ = build.read_groups(run.read_page(repository / "results" / "tables.yaml"), repository / "results")
    (entry,) = group.entries
    for role in ("weak", "naive", "zero-shot", LINEAR_PROBE):
        np.testing.assert_allclose(entry.correct(role).mean(axis=1), entry.accuracies(role))
    wrong = entry.correct("weak") == 0
    shares = [same[of_seed].mean() for same, of_seed in zip(entry.agrees("naive"), wrong, strict=True)]
    np.testing.assert_allclose(shares, entry.scores("naive")["agreement_supervisor_wrong"])
    rows = build.directions([("SST-2", entry)])
    assert rows[0].cells[:2] == ["SST-2", "naive and weak supervisor"]
    assert rows[-1].cells[:2] == ["SST-2", "errors that confidence copies, and that naive copies"]
    assert str(rows).count("(4.3.2)") == 1 and str(rows).count("(5.1.2)") == 2
    # The findings of the paper differ between texts and pairs.
    entry.results.setting = "reward"
    pairs = str(build.directions([("HH", entry)]))
    assert "PGR about 0.1" in pairs and "(4.3.2)" not in pairs and "(5.1.2)" not in pairs
    with pytest.raises(ValueError, match="got no predictions of 5-shot, .* Run python results/run.py sst2"):
        entry.correct("5-shot")
    predictions = entry.predictions.copy()
    entry.predictions.loc[entry.predictions["role"] == "weak", "correct"] = True
    assert "errors" not in str(build.directions([("SST-2", entry)])), "a supervisor without errors"
    entry.predictions["correct"] = predictions["correct"]
    # Without probabilities, it is unknown which errors are the same.
    entry.predictions["prediction"] = None
    assert "errors" not in str(build.directions([("Chess", entry)]))


def test_a_supervisor_at_chance_is_named_and_the_ceiling_compared_with_the_probe(repository):
    groups = build.read_groups(run.read_page(repository / "results" / "tables.yaml"), repository / "results")
    entry = groups[0].entries[0]
    difference = entry.accuracies("ceiling").mean() - entry.accuracies(LINEAR_PROBE).mean()
    header, _, *rows = build.differences_table(entry).splitlines()
    assert header == "| model | minus supervisor | minus naive student | minus linear probe | minus zero-shot prompt |"
    assert rows[-1].startswith(f"| strong ceiling |  |  | {rounded(difference)} [")
    assert not any("chance" in line for line in build.warnings_of(entry))
    entry.results.runs[1].weak.ci95 = [entry.results.chance, 0.75]
    (line,) = [line for line in build.warnings_of(entry) if "chance" in line]
    assert line.startswith("The supervisor is not clearly better than chance in 1 of 2 seeds (seed 1). ")


def test_the_student_trained_on_its_answers_is_compared(repository):
    groups = build.read_groups(run.read_page(repository / "results" / "tables.yaml"), repository / "results")
    entry = groups[0].entries[0]
    of_naive = entry.predictions[entry.predictions["role"] == "naive"]
    entry.__dict__["predictions"] = pd.concat([entry.predictions, of_naive.assign(role=SELF_TRAINED)])
    scores = entry.scores("naive").assign(role="baseline", method=SELF_TRAINED)
    entry.__dict__["table"] = pd.concat([entry.table, scores])
    difference = {"difference": 0.0, "difference_ci95": [-0.01, 0.01], "n_better": 0, "n_seeds": 2}
    entry.results.self_trained = SelfTrainedSummary(method="naive", accuracy_mean=0.7, **difference)
    header, _, *rows = build.differences_table(entry).splitlines()
    assert "| minus linear probe | minus student trained on its zero-shot answers |" in header
    (naive,) = [row for row in rows if row.startswith("| student, naive |")]
    assert naive.split(" | ")[4] == "0.000 [0.000, 0.000], 0 of 2"


def test_hours_count_each_step_once():
    seconds = {"weak": 3600, "hidden-states": 3600, "total": 1, "students/naive-seed0": 5, "student-for-labels": 3600}
    hours = build.Entry.hours.fget
    assert hours(SimpleNamespace(results=SimpleNamespace(wall_seconds=seconds))) == 2
    # Hidden states are computed within the labels of a probe.
    seconds["labels-relabelled_knn"] = 3700
    assert hours(SimpleNamespace(results=SimpleNamespace(wall_seconds=seconds))) == 7300 / 3600


def test_undefined_pgr_is_no_unbounded_interval():
    summary = {"pgr_median": None, "pgr_ci95": None, "n_seeds": 2, "n_undefined": 2}
    assert build.pgr_cell(PgrSummary.from_dict(summary)) == "undefined in 2 of 2 seeds"
    some = summary | {"pgr_median": 0.5, "n_undefined": 1}
    assert build.pgr_cell(PgrSummary.from_dict(some)) == "0.50 [unbounded], undefined in 1 of 2 seeds"


def test_methods_and_seeds_that_are_there_are_run_again(repository, capsys):
    tables = str(repository / "results" / "tables.yaml")
    run.main(["--tables", tables, "--dry_run", "--add_methods", "product", "naive"])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("sst2: ") and "--seeds 0 1 --methods naive confidence product" in lines[0]

    results = made_up_results([0, 1, 5], ["naive", "confidence", "product"])
    (repository / "results" / "sst2" / "results.json").write_text(json.dumps(results))
    run.main(["sst2", "--tables", tables, "--dry_run", "--add_seeds", "7"])
    (line,) = capsys.readouterr().out.splitlines()
    assert "--seeds 0 1 5 7 --methods naive confidence product" in line


def test_local_copies_take_the_place_of_the_hub(repository, tmp_path, capsys):
    options = {**OPTIONS, "weak_model": "org/student", "student_model": "org/student"}
    tables = write_tables(tmp_path / "list", {"sst2": {"title": "SST-2", "recipe": "recipes/nlp.py"}}, options)
    command = ["--tables", str(tables), "--dry_run", "--models", str(tmp_path / "m"), "--data", str(tmp_path / "d")]
    with pytest.raises(SystemExit):
        run.main(command)
    assert "expected the directory 'smollm2-135m' there, with org/student" in capsys.readouterr().err
    (tmp_path / "m" / "smollm2-135m").mkdir(parents=True)
    (tmp_path / "m" / "smollm2-135m" / "config.json").write_text("{}")
    with pytest.raises(SystemExit):
        run.main(command)
    assert "expected a directory 'sst2' in it" in capsys.readouterr().err
    (tmp_path / "d" / "sst2").mkdir(parents=True)
    run.main(command)
    line = capsys.readouterr().out
    assert f"--student_model {tmp_path / 'm' / 'smollm2-135m'} --dataset_path {tmp_path / 'd' / 'sst2'}" in line
    assert "org/student" not in line


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"settings": {"resume": "/home/someone/out"}}, "no local path"),
        ({"runs": [{"model": "~/models/mine"}]}, "no local path"),
        ({"/tmp/out/students": 1.0}, "no local path"),
        (
            {"analyses": {"examples": ["a phrase of seven words from critics"]}},
            "at most 5 words",
        ),
    ],
)
def test_what_must_not_be_published_is_refused(content, message):
    with pytest.raises(ValueError, match=message):
        run.check_publishable(content)
    run.check_publishable(
        {"description": "A sentence of this package may have as many words as it needs.", "a": "b/c"}
    )


def test_settings_of_a_student_in_4_bits_can_be_published():
    config = StudentConfig(load_in_4bit=True, dtype="float32").resolved(use_cpu=True)
    settings = run_settings(ClassificationArguments(), WeakToStrongConfig(output_dir="out", use_cpu=True), config)
    assert len(settings.to_dict()["student"]["quantization"].split()) > 5
    run.check_publishable({"settings": settings.to_dict()})


@pytest.mark.parametrize("home", ["/home/student", "/home/naive", "/root"])
def test_a_user_is_found_in_paths_alone(home, monkeypatch):
    monkeypatch.setenv("HOME", home)
    run.check_publishable(made_up_results([0], ["naive"]))
    with pytest.raises(ValueError, match="no local path"):
        run.check_publishable({"output": f"saved in {home}"})


def test_dates_are_those_of_the_training(tmp_path):
    with pytest.raises(ValueError, match="no trained students"):
        run.trained_on(tmp_path)
    for seed, time in enumerate((1_700_000_000, 1_600_000_000)):
        path = tmp_path / "students" / f"naive-seed{seed}" / "adapter_model.safetensors"
        path.parent.mkdir(parents=True)
        path.touch()
        os.utime(path, (time, time))
    first, last = run.trained_on(tmp_path)
    assert first.startswith("2020-09-1") and last.startswith("2023-11-1")


def test_an_unknown_table_is_refused(capsys):
    with pytest.raises(SystemExit):
        run.main(["sst", "--dry_run"])
    assert "Did you mean 'sst2'" in capsys.readouterr().err


# P(class 1) of four rows of class 1. The lists differ by 0.25 in one row and by 0.5 in another.
HERE, THERE = [0.75, 0.5625, 0.25, 0.875], [0.75, 0.3125, 0.75, 0.875]


def test_predictions_are_compared_by_row(tmp_path):
    here = write_made_up(tmp_path / "here", [0, 1], {"weak": HERE, "naive": HERE})
    there = write_made_up(tmp_path / "there", [1, 0], {"naive": THERE, "weak": HERE, "product": HERE})
    there = there.sample(frac=1, random_state=0)
    compared = compare.compare_predictions(here, there)
    assert [(each["seed"], each["role"]) for each in compared] == [
        (0, "weak"),
        (0, "naive"),
        (1, "weak"),
        (1, "naive"),
    ]
    weak, naive = compared[:2]
    assert (weak["largest_difference"], weak["mean_difference"], weak["n_different"]) == (0, 0, 0)
    assert naive == {
        "seed": 0, "role": "naive", "n": 4, "accuracy": 0.75, "other_accuracy": 0.75,
        "largest_difference": 0.5, "mean_difference": 0.1875, "n_different": 2,
    }  # fmt: skip
    texts = (each.assign(prediction=None) for each in (here, there))
    answers = compare.compare_predictions(*texts)[1]
    assert (answers["largest_difference"], answers["mean_difference"], answers["n_different"]) == (None, None, 2)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda there: there[there["id"] != "0" * 16],
            "seed 0, weak, expected the same test rows. 1 ids, such as 0000000000000000, are",
        ),
        (lambda there: there[there["seed"] != 1], "no predictions of seed 1, weak"),
    ],
)
def test_predictions_of_other_rows_or_models_are_not_compared(change, message, tmp_path):
    here = write_made_up(tmp_path, [0, 1], {"weak": HERE})
    with pytest.raises(ValueError, match=message):
        compare.compare_predictions(here, change(here))
    if "ids" in message:
        with pytest.raises(ValueError, match=message):
            compare.compare_predictions(change(here), here)


def test_other_files_are_no_predictions(tmp_path):
    with pytest.raises(FileNotFoundError, match="Run the experiment again"):
        read_predictions(tmp_path / PREDICTIONS)
    pd.DataFrame({"seed": [0]}).to_parquet(tmp_path / PREDICTIONS)
    with pytest.raises(ValueError, match="with the columns seed, expected"):
        read_predictions(tmp_path / PREDICTIONS)


def test_a_table_is_compared_with_another_one(repository):
    folder = repository / "results"
    tables = yaml.safe_load((folder / "tables.yaml").read_text())
    tables["tables"]["pairs"]["compare_with"] = "sst2"
    for path in folder.glob("**/predictions.parquet"):
        path.unlink()
    (folder / "tables.yaml").write_text(yaml.safe_dump(tables, sort_keys=False))
    with pytest.raises(
        ValueError, match="got no pairs/as_it_is/predictions.parquet .* Run python results/run.py pairs"
    ):
        build.build(repository, folder / "tables.yaml")
    for name in ("as_it_is", "in_4_bits"):
        write_made_up(folder / "pairs" / name, [0], {"weak": HERE, "naive": HERE, "confidence": HERE, "product": HERE})
    with pytest.raises(ValueError, match="got no sst2/predictions.parquet .* Run python results/run.py sst2"):
        build.build(repository, folder / "tables.yaml")
    write_made_up(folder / "sst2", [1], {"weak": HERE})
    with pytest.raises(ValueError, match="a model and seed in common"):
        build.build(repository, folder / "tables.yaml")
    predictions = {"weak": HERE, "naive": [0.75, 0.3125, 0.375, 0.875], "confidence": HERE, "zero-shot": HERE}
    write_made_up(folder / "sst2", [0, 1], predictions)
    build.build(repository, folder / "tables.yaml")
    page = (repository / "docs" / "results.md").read_text()
    assert page.count("Comparison with `sst2` on the same test rows (seed 0)") == 2
    assert page.count("| weak supervisor | 0.750 | 0.750 | 0.000 | 0.000 | 1.000 |") == 2
    assert page.count("| student, naive | 0.750 | 0.500 | 0.250 | 0.094 | 0.750 |") == 2
    assert page.count("| student, product |") == 0

    tables["tables"]["pairs"]["compare_with"] = "sst"
    (folder / "tables.yaml").write_text(yaml.safe_dump(tables))
    with pytest.raises(ValueError, match="expected the name of a run: .* Did you mean 'sst2'"):
        run.read_page(folder / "tables.yaml")


@pytest.fixture
def checked(repository, monkeypatch):
    """Returns a function that checks the table `sst2` for given predictions, and returns `check.json`."""
    folder, outputs = repository / "results", repository / "out_check" / "sst2"
    stages = outputs.parent / "_stages"
    results = made_up_results([0, 1, 2], ["naive", "confidence"])
    (folder / "sst2" / "results.json").write_text(json.dumps(results))
    tables = yaml.safe_load((folder / "tables.yaml").read_text())
    tables["tables"]["sst2"]["options"] = {"analyses": ["agreement"]}
    (folder / "tables.yaml").write_text(yaml.safe_dump(tables, sort_keys=False))
    roles = ("weak", "naive", "confidence", "zero-shot")
    write_made_up(folder / "sst2", [0, 1, 2], dict.fromkeys(roles, HERE))
    monkeypatch.setattr(run, "machine", lambda: MACHINE)
    monkeypatch.setattr(run, "revision", lambda: "0" * 12)

    def check(*options, seeds=(0, 1, 2), **predictions):
        commands = []

        def launch(command):
            commands.append(command)
            (outputs / "_stages" / "weak-1").mkdir(parents=True)
            assert (stages / "weak-1").is_dir(), "runs share their trained models"
            write_made_up(outputs, list(seeds), {"confidence": HERE} | predictions)

        monkeypatch.setattr(run, "launch", launch)
        tables = str(folder / "tables.yaml")
        try:
            run.main(["sst2", "--check", "--tables", tables, "--outputs", str(repository / "out"), *options])
        finally:
            check.commands = commands
            check.trains_anew = not stages.exists()
        assert check.trains_anew
        return json.loads((folder / "sst2" / "check.json").read_text())

    return check


def test_a_check_trains_seeds_in_their_order_and_finds_no_difference(checked, repository, capsys):
    facts = checked("--seeds", "2", "0", seeds=[2, 0], weak=HERE, naive=HERE)
    (command,) = checked.commands
    words = " ".join(command)
    assert "--seeds 2 0 --methods naive confidence" in words and "--analyses" not in words
    assert words.endswith(f"--output_dir {repository / 'out_check' / 'sst2'} --overwrite_output_dir true")
    assert facts["seeds"] == [2, 0] and facts["checked_by"] == {"commit": "0" * 12, **MACHINE}
    assert re.fullmatch(r"\d{4}-\d\d-\d\d", facts["date"]) and len(facts["models"]) == 6
    unchanged = {"n": 4, "largest_difference": 0.0, "n_different": 0}
    assert {"seed": 2, "role": "naive", **unchanged} in facts["models"]
    assert (
        "sst2, seed 0, weak: largest difference in probability 0, 0 of 4 predictions differ" in capsys.readouterr().out
    )
    build.build(repository, repository / "results" / "tables.yaml")
    line = f"The models were trained again on {facts['date']} (seeds 2, 0, commit {'0' * 12}). "
    line += "The largest difference in probability is 0, and the class differs in 0 of 24 predictions by 6 models"
    assert line in (repository / "docs" / "results.md").read_text()


@pytest.mark.parametrize("other", [{"cpu": "another"}, {"cores": 4}, {"threads": 2}, {"instructions": "AVX512"}])
def test_a_check_notices_a_changed_prediction(other, checked, repository, monkeypatch, capsys):
    slightly = [HERE[0] + 2**-20, *HERE[1:]]
    assert max(each["n_different"] for each in checked(weak=slightly, naive=HERE)["models"]) == 0
    with pytest.raises(SystemExit, match="predictions that differ: sst2"):
        checked(weak=HERE, naive=THERE)
    assert checked.trains_anew
    output = capsys.readouterr()
    assert "seed 1, naive: largest difference in probability 0.5, 2 of 4 predictions differ" in output.out
    assert "No predicted classes or completions differ." in output.out
    assert "\n6 predicted classes or completions differ." in output.out
    assert "got 6 predictions that differ on the same kind of machine" in output.err
    assert (repository / "results" / "sst2" / "check.json").is_file()
    # Another CPU or number of cores can round differently, so the difference is reported, but it is not an error.
    monkeypatch.setattr(run, "machine", lambda: MACHINE | other)
    assert checked(weak=HERE, naive=THERE)["checked_by"].items() >= other.items()
    build.build(repository, repository / "results" / "tables.yaml")
    line = "difference in probability is 0.5, and the class differs in 6 of 36 predictions by 9 models."
    page = (repository / "docs" / "results.md").read_text()
    place = build._machine(MACHINE | other)
    assert f"on {place} (seeds 0, 1, 2, commit" in page and line in page


def test_a_check_stays_while_its_models_have_the_same_predictions(checked, repository, monkeypatch):
    folder, outputs = repository / "results" / "sst2", repository / "out" / "sst2"
    checked("--seeds", "2", "0", seeds=[2, 0], weak=HERE, naive=HERE)

    def publish(**predictions):
        def launch(command):
            student = outputs / "students" / "naive" / "adapter.safetensors"
            student.parent.mkdir(parents=True, exist_ok=True)
            student.touch()
            (outputs / "results.json").write_text(json.dumps(made_up_results([0, 1, 2], list(predictions)[1:])))
            write_made_up(outputs, [0, 1, 2], predictions | {"zero-shot": HERE})

        monkeypatch.setattr(run, "launch", launch)
        tables = str(repository / "results" / "tables.yaml")
        run.main(["sst2", "--tables", tables, "--outputs", str(repository / "out")])
        build.build(repository, repository / "results" / "tables.yaml")
        return (repository / "docs" / "results.md").read_text()

    assert "not trained again" not in publish(weak=HERE, naive=HERE, confidence=HERE)
    page = publish(weak=HERE, naive=HERE, confidence=HERE, product=THERE)
    assert "(seeds 2, 0, commit 000000000000). " in page
    assert "by 6 models. These students were not trained again: product." in page
    publish(weak=HERE, naive=HERE, confidence=[HERE[0] + 2**-20, *HERE[1:]], product=THERE)
    assert not (folder / "check.json").exists()


def test_the_check_of_a_run_without_predictions_is_removed(checked, repository):
    checked(weak=HERE, naive=HERE)
    published, new = repository / "results" / "sst2", repository / "out" / "sst2"
    write_made_up(new, [0, 1, 2], {"weak": HERE, "naive": HERE, "confidence": HERE})
    (published / PREDICTIONS).rename(new / PREDICTIONS)
    (new / "results.json").write_text((published / "results.json").read_text())
    (new / "students" / "naive").mkdir(parents=True)
    (new / "students" / "naive" / "adapter.safetensors").touch()
    run.publish(run.read_page(repository / "results" / "tables.yaml").runs[0], new, published.parent, "0" * 12)
    assert (published / PREDICTIONS).is_file() and not (published / "check.json").exists()


@pytest.mark.parametrize("is_correct", [True, False])
def test_completions_are_the_same_if_the_same_rows_are_correct(is_correct, tmp_path):
    paths = [tmp_path / name for name in ("published", "new")]
    for path, second in zip(paths, (True, is_correct), strict=True):
        right = {"weak": np.array([False, second])}
        write_predictions([predictions_table(0, ["a", "b"], {"weak": ["1", "2"]}, right)], path)
    assert run._has_same_predictions(*map(read_predictions, paths), [{"seed": 0, "role": "weak"}]) == is_correct


@pytest.mark.parametrize("is_link", [True, False])
def test_a_check_trains_anew_whatever_an_earlier_one_has_left(is_link, checked, repository):
    """A check of an older version kept the trained models of a run in its own directory."""
    stages = repository / "out_check" / "sst2" / "_stages"
    stages.parent.mkdir(parents=True)
    if is_link:
        stages.symlink_to(repository / "removed")
    else:
        (repository / "out_check" / "_stages" / "weak-1").mkdir(parents=True)
        stages.mkdir()
    checked(weak=HERE, naive=HERE)
    assert not stages.exists() and not stages.is_symlink(), "the next check would reuse them"


def test_two_checks_do_not_share_outputs(checked, repository, capsys):
    (repository / "out_check").mkdir()
    with FileLock(repository / "out_check" / "check.lock"), pytest.raises(SystemExit):
        checked(weak=HERE, naive=HERE)
    assert "which another check uses, expected one check at a time. Wait" in " ".join(capsys.readouterr().err.split())
    assert checked.commands == []
    checked(weak=HERE, naive=HERE)


def test_a_check_of_other_rows_is_an_error(checked, repository, capsys):
    with pytest.raises(SystemExit, match=r"Runs that failed: sst2\. Repeat the command to resume them"):
        checked(weak=HERE[:3], naive=HERE[:3], confidence=HERE[:3])
    assert "Got other test rows for seed 0, weak" in capsys.readouterr().err
    assert not (repository / "results" / "sst2" / "check.json").exists()
    assert not checked.trains_anew, "repeating the command resumes it"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            ["pairs", "--check"],
            "got no pairs/as_it_is/predictions.parquet in results, expected published",
        ),
        (["sst2", "--check", "--seeds", "7"], "--seeds: got 7, expected seeds of sst2: 0, 1, 2"),
        (["sst2", "--check", "--add_seeds", "7"], "expected at most --seeds"),
        (["sst2", "--check", "--overwrite"], "expected at most --seeds"),
        (["sst2", "--seeds", "0"], "--seeds: got no --check"),
    ],
)
def test_checks_that_make_no_sense_are_refused(options, message, checked, repository, capsys):
    (repository / "results" / "pairs" / "as_it_is" / PREDICTIONS).unlink()
    with pytest.raises(SystemExit):
        run.main([*options, "--tables", str(repository / "results" / "tables.yaml")])
    assert message in " ".join(capsys.readouterr().err.split())


def test_without_names_all_published_runs_are_checked(checked, repository, capsys):
    (repository / "results" / "pairs" / "as_it_is" / PREDICTIONS).unlink()
    run.main(["--check", "--dry_run", "--tables", str(repository / "results" / "tables.yaml")])
    assert [line.split(":")[0] for line in capsys.readouterr().out.splitlines()] == ["sst2", "pairs/in_4_bits"]


def test_a_check_needs_published_runs(repository, capsys):
    for path in (repository / "results").glob(f"**/{PREDICTIONS}"):
        path.unlink()
    tables = ["--tables", str(repository / "results" / "tables.yaml")]
    with pytest.raises(SystemExit):
        run.main(["--check", "--dry_run", *tables])
    assert "got no run with predictions.parquet" in capsys.readouterr().err


def test_an_error_names_the_runs_that_differ_and_those_that_failed(repository, monkeypatch):
    monkeypatch.setattr(run, "launch", lambda command: None)
    monkeypatch.setattr(run, "revision", lambda: "0" * 12)

    def check(each, *places):
        if each.label:
            raise ValueError("got no predictions")
        return False

    monkeypatch.setattr(run, "check", check)
    tables = ["--tables", str(repository / "results" / "tables.yaml"), "--outputs", str(repository / "out")]
    with pytest.raises(SystemExit, match=r"that differ: sst2\.\n.* failed: pairs/as_it_is, pairs/in_4_bits\."):
        run.main(["--check", *tables])


def test_a_check_of_a_seed_without_predictions_is_refused(checked, repository, capsys):
    write_made_up(repository / "results" / "sst2", [0, 1], {"weak": HERE, "naive": HERE})
    with pytest.raises(SystemExit):
        checked("--seeds", "2", weak=HERE, naive=HERE)
    assert "--seeds: got 2, expected seeds of sst2: 0, 1." in " ".join(capsys.readouterr().err.split())
    assert checked(seeds=[0, 1], weak=HERE, naive=HERE)["seeds"] == [0, 1], "seed 2 has no predictions"


def test_a_check_of_changed_options_is_refused(checked, repository, capsys):
    path = repository / "results" / "sst2" / "run.json"
    facts = json.loads(path.read_text())
    path.write_text(json.dumps(facts | {"options": facts["options"] | {"learning_rate": 1.0, "seeds": [0]}}))
    with pytest.raises(SystemExit):
        checked(weak=HERE, naive=HERE)
    assert "got sst2 with learning_rate=" in capsys.readouterr().err


@pytest.mark.parametrize("option", ["--add_methods", "--add_analyses"])
def test_an_unknown_method_or_analysis_is_refused_before_a_run(option, capsys):
    with pytest.raises(SystemExit):
        run.main(["sst2", option, "entropi", "--dry_run"])
    assert f"error: {option}: got entropi, expected some of" in capsys.readouterr().err


def test_mistakes_in_the_list_of_tables_are_named(tmp_path, capsys):
    path = write_tables(tmp_path, {"sst2": {"title": "SST-2", "recipe": "recipes/nlp.py"}}, OPTIONS)
    text = path.read_text()
    mistakes = {
        ("local_rows:", "lokal_rows:"): "got the key 'lokal_rows', expected local_rows, models, options, tables. Did",
        ("options:", "seeds:"): "tables.yaml: got the key 'seeds', expected local_rows, models, options, tables.",
        ("directory:", "direktory:"): "directory, local, weights. Did you mean 'directory'?",
        ("title:", "titel:"): "tables.yaml, the table sst2: got the key 'titel', expected recipe, title, ",
        ("    title: SST-2\n", ""): "tables.yaml, the table sst2: got no title, expected recipe, title. Add the ",
        ("tables:", "tables: ["): "tables.yaml: got invalid YAML (",
        (text, ""): "tables.yaml: got no local_rows, models, options, tables, expected local_rows, models",
        ("title: SST-2", "title: x\n    options: {seeds: 0}"): "the table sst2: seeds: got 0, expected a list.",
    }
    for (old, new), message in mistakes.items():
        assert old in text
        path.write_text(text.replace(old, new, 1))
        with pytest.raises(SystemExit):
            run.main(["--tables", str(path), "--dry_run"])
        assert message in capsys.readouterr().err


def test_a_local_copy_takes_the_place_of_a_model_that_the_configuration_names(tmp_path, capsys, monkeypatch):
    path = write_tables(tmp_path, {"sst2": {"title": "SST-2", "recipe": "recipes/nlp.py"}}, {"config": "some"})
    text = "weak_model: org/student\nstudent_model: org/student\nladder: [org/student]\n"
    (tmp_path / "some.yaml").write_text(text)
    monkeypatch.setattr(run, "CONFIGS", tmp_path)
    (tmp_path / "smollm2-135m").mkdir()
    (tmp_path / "smollm2-135m" / "config.json").write_text("{}")
    run.main(["--tables", str(path), "--dry_run", "--models", str(tmp_path)])
    line = capsys.readouterr().out
    for option in ("--weak_model", "--student_model", "--ladder"):
        assert f"{option} {tmp_path / 'smollm2-135m'}" in line


@pytest.mark.slow
def test_a_run_leaves_its_results(tmp_path, cache, monkeypatch):
    """Runs a tiny demo as a table. Two runs share a supervisor, and the published files contain the command."""
    demo = {"config": "demo", "seeds": [0], "methods": ["naive"], "n_train": 24, "n_weak": 24}
    demo |= {"n_validation": 8, "n_test": 20, "max_steps": 1, "student_model": "scratch-64x2"}
    demo |= {"load_best_model_at_end": False, "eval_strategy": "no", "save_strategy": "no"}
    table = {"title": "Demo", "recipe": "recipes/boolq.py", "runs": {"a": {}, "b": {"seeds": [0, 1]}}}
    tables = write_tables(tmp_path / "list", {"demo": table}, demo)

    def here(command):
        process = recipe_here(*command[2:], cache=cache)
        assert process.returncode == 0, process.stderr[-2000:]

    monkeypatch.setattr(run, "launch", here)
    monkeypatch.setattr(run, "revision", lambda: "0" * 12)
    run.main(["--tables", str(tables), "--outputs", str(tmp_path / "out")])
    for name, seeds in {"a": [0], "b": [0, 1]}.items():
        results = json.loads((tables.parent / "demo" / name / "results.json").read_text())
        facts = json.loads((tables.parent / "demo" / name / "run.json").read_text())
        assert [each["seed"] for each in results["runs"]] == seeds
        assert facts["command"].startswith("python recipes/boolq.py --config demo --seeds 0")
        assert str(tmp_path) not in facts["command"] and set(facts["published_by"]) >= set(MACHINE)
        assert facts["options"]["n_train"] == 24 and "learning_rate" in facts["options"]
        run.check_predictions(check_predictions(tables.parent / "demo" / name))
    assert len(list((tmp_path / "out" / "_stages").glob("weak-*[0-9a-f]"))) == 2  # for seeds 0 and 1

    command = ["demo/b", "--tables", str(tables), "--outputs", str(tmp_path / "out")]
    run.main([*command, "--check", "--seeds", "1"])
    facts = json.loads((tables.parent / "demo" / "b" / "check.json").read_text())
    assert facts["seeds"] == [1] and {each["largest_difference"] for each in facts["models"]} == {0}
    run.main(command)
    assert (tables.parent / "demo" / "b" / "check.json").is_file(), "the check of the same predictions remains valid"
    write_made_up(tables.parent / "demo" / "b", [0], {"weak": HERE})
    run.main(command)
    check_predictions(tables.parent / "demo" / "b")
    assert not (tables.parent / "demo" / "b" / "check.json").exists()


def test_the_table_of_methods_follows_the_files():
    page = methods.write_page()
    assert page == methods.PAGE.read_text(encoding="utf-8"), "run `python results/methods.py`"
    for name in (*METHODS, BOOTSTRAP):
        assert f"\n| `{name}`" in page.partition(methods.BEGIN)[2], name
