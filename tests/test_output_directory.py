"""Tests that no experiment replaces the results of another one in its output directory."""

import json
from contextlib import nullcontext
from types import SimpleNamespace

import pytest
from helpers.cards import CARDS
from helpers.running import ROOT

from w2s_hf.config import CompletionConfig, RewardPairConfig
from w2s_hf.experiments import experiment
from w2s_hf.experiments.cli import parse_arguments
from w2s_hf.experiments.config import AnyTaskArguments, ChessArguments, RewardArguments
from w2s_hf.experiments.experiment import Experiment
from w2s_hf.experiments.output_directory import MANIFEST, Manifest, check_output_dir, clear, identity_of, is_still_true
from w2s_hf.experiments.settings.classification import CLASSIFICATION
from w2s_hf.sweep.grid import Cell, SweepArguments
from w2s_hf.sweep.run import check_cells
from w2s_hf.tasks import find_task

CONFIGS = ROOT / "w2s_hf" / "configs"
ANY = {"experiment": AnyTaskArguments}
KINDS = {
    "demo": ("boolq", "classification", {}),
    "demo_reward": ("anthropic_hh", "reward", {"experiment": RewardArguments, "training": RewardPairConfig}),
    "demo_chess": ("chess_puzzles", "chess", {"experiment": ChessArguments, "training": CompletionConfig}),
}


def wanted(options: str = "", kind: str = "demo", task: str | None = None) -> Manifest:
    """Returns the experiment of a command line."""
    of_kind, setting, types = KINDS[kind]
    config = CONFIGS / f"{kind}.yaml"
    parsed = parse_arguments("", config, ["--config", str(config), *options.split()], announce=False, **types)
    return identity_of(task or of_kind, setting, *parsed)


def check(directory, options: str = "", overwrite: bool = False, **kind) -> Manifest | None:
    return check_output_dir(directory, wanted(options, **kind), overwrite=overwrite)


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_experiment_and_more_of_it_goes_on(kind, tmp_path):
    wanted("--seeds 0 1 --methods naive", kind).write(tmp_path)
    more = "--seeds 1 0 2 --methods naive --analyses overfitting --run_name mine --per_device_train_batch_size 16 "
    more += "--gradient_accumulation_steps 2 --logging_steps 3 --per_device_eval_batch_size 5 --save_total_limit 2"
    there = check(tmp_path, more, kind=kind)
    assert there.seeds == [0, 1] and list(there.methods) == ["naive"]
    if kind == "demo":
        assert check(tmp_path, "--seeds 0 1 --methods confidence naive --num_train_epochs 2 --warmup_steps 0.1")


BEFORE = "--seeds 0 1 --analyses overfitting "


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (BEFORE + "--learning_rate 1e-4", "learning_rate: 0.003 there, 0.0001 here"),
        (BEFORE + "--n_train 100", "n_train: 2000 there, 100 here"),
        (BEFORE + "--lora_r 4", "lora_r: 8 there, 4 here"),
        (BEFORE + "--student_model scratch-64x2", "student_model: demo/pretrained-64x2 there, demo/scratch-64x2 here"),
        (BEFORE + "--demo_world ladder", "demo_world: unset there, ladder here"),
        (BEFORE + "--aux_coef 0.25", "confidence: "),
        (BEFORE + "--use_peft false", "use_peft: true there, false here"),
        (BEFORE + "--learning_rate 0.0030000001", "learning_rate: 0.003 there, 0.0030000001 here"),
        (BEFORE + "--adam_beta1 0.8 --split_seed 3 --weak_weight_decay 1 --lora_r 2 --lora_dropout 0.1 "
         "--disable_dropout false", ", and 2 more"),
        (BEFORE + "--n_snapshots 3", "overfitting: "),
        (BEFORE + "--methods naive", "results of this experiment for the methods confidence."),
        ("--seeds 1 2 --analyses overfitting", "results of this experiment for the seeds 0."),
        ("--seeds 0 1 --n_snapshots 3", "results of this experiment for the analyses overfitting."),
    ],
)  # fmt: skip
def test_another_experiment_and_less_of_this_one_are_refused(options, words, tmp_path):
    wanted(BEFORE + "--run_name first").write(tmp_path)
    with pytest.raises(ValueError) as refused:
        check(tmp_path, options)
    message = str(refused.value)
    assert words in message and f"got {tmp_path}" in message
    assert "another --output_dir" in message and "--overwrite_output_dir true" in message
    assert "results of this" in message or "'boolq (demo: generated rows), run first'" in message
    assert check(tmp_path, options, overwrite=True) is None


@pytest.mark.parametrize(
    ("there", "here", "message"),
    [
        ({}, {"task": "sciq"}, "task: boolq there, sciq here"),
        ({}, {"kind": "demo_chess"}, "task: boolq there, chess_puzzles here"),
        ({}, "sweep", "which has the experiment 'boolq .*', expected a directory for a sweep"),
        ("sweep", {}, "which has a sweep, expected a directory for an experiment"),
    ],
    ids=["task", "setting", "sweep here", "sweep there"],
)
def test_another_task_setting_and_kind_are_refused(there, here, message, tmp_path):
    there, here = (Manifest("sweep", "sweep", {}) if of == "sweep" else wanted(**of) for of in (there, here))
    there.write(tmp_path)
    with pytest.raises(ValueError, match=message):
        check_output_dir(tmp_path, here, overwrite=False)


@pytest.mark.parametrize(
    ("found", "message"),
    [
        ({}, None),
        ({"student_model": "2"}, "student_model: 1 there, 2 here"),
        ({"rows of seed 0": "xyz"}, "rows of seed 0: abc there, xyz here"),
    ],
    ids=["the same", "model", "rows"],
)
def test_other_rows_or_models_under_the_same_names_are_refused(found, message, tmp_path):
    first, second = wanted(), wanted("--seeds 0 1")
    first.found = {"rows of seed 0": "abc", "student_model": "1"}
    first.write(tmp_path)
    second.found = {**first.found, "rows of seed 1": "def", **found}
    with pytest.raises(ValueError, match=message) if message else nullcontext():
        assert check_output_dir(tmp_path, second, overwrite=False)


def test_models_of_a_chain_are_compared_by_name_as_the_others(tmp_path, monkeypatch):
    for name in ("a", "b", "c"):
        (tmp_path / "models" / name).mkdir(parents=True)
    config = KINDS["demo"][2]

    def chain(place) -> Manifest:
        options = f"--weak_model {place}/a --student_model {place}/c --ladder {place}/b {place}/c --n_train 100 "
        options += "--methods naive bootstrap --analyses agreement --use_cpu true"
        parsed = parse_arguments("", CONFIGS / "demo.yaml", options.split(), announce=False, task="boolq", **config)
        return identity_of("boolq", "classification", *parsed)

    chain(tmp_path / "models").write(tmp_path / "out")
    monkeypatch.chdir(tmp_path)
    assert check_output_dir(tmp_path / "out", chain("models"), overwrite=False)
    assert str(tmp_path) not in (tmp_path / "out" / MANIFEST).read_text()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("", None),
        ("--seeds 0 1", None),
        ("--learning_rate 1", "learning_rate"),
        ("--seeds 1", "seeds 0[.]"),
        ("--methods naive", "confi"),
    ],
)
def test_results_of_older_versions_are_known_by_what_they_say(options, message, tmp_path):
    results = json.loads((CARDS / "boolq-demo" / "results.json").read_text())
    for name in ("eval_strategy", "eval_steps", "save_steps", "load_best_model_at_end", "metric_for_best_model"):
        del results["settings"]["training"][name]
    (tmp_path / "results.json").write_text(json.dumps(results))
    with pytest.raises(ValueError, match=message) if message else nullcontext():
        assert check(tmp_path, options).seeds == [0]


def test_files_of_other_names_stay(tmp_path):
    (tmp_path / "_stages").mkdir()
    (tmp_path / "notes.md").touch()
    assert check(tmp_path) is None, "neither the cache of stages nor files of other names are results"


@pytest.mark.parametrize("overwrite", [False, True], ids=["", "overwrite"])
@pytest.mark.parametrize("name", ["report.md", "results.json", "students"])
def test_files_of_other_programs_are_not_replaced(name, overwrite, tmp_path):
    (tmp_path / name).mkdir() if name == "students" else (tmp_path / name).write_text("{}")
    with pytest.raises(ValueError, match=f"which has .*{name}.* of another program"):
        check(tmp_path, overwrite=overwrite)


def test_a_record_that_cannot_be_read_is_named(tmp_path):
    (tmp_path / MANIFEST).write_text("{")
    with pytest.raises(ValueError, match="experiment.json cannot be read"):
        check(tmp_path)


def test_overwriting_removes_results_and_keeps_stages_and_foreign_files(tmp_path):
    wanted().write(tmp_path)
    for name in ("students/naive-seed7", "weak_labels/seed0", "figures", "_stages/weak-abc", "logs"):
        (tmp_path / name).mkdir(parents=True)
    for name in ("results.json", "predictions.parquet", "report.md", "notes.md"):
        (tmp_path / name).touch()
    clear(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"_stages", "logs", "notes.md"}
    clear(tmp_path)
    assert (tmp_path / "_stages" / "weak-abc").is_dir()


class Stopped(Experiment):
    """Tests an experiment that fails in its first or second seed."""

    ends_in, error, n_built = 0, ValueError, 0

    def inputs(self, seed):
        return None, SimpleNamespace(fingerprint=f"rows {seed}")

    def seed_context(self, seed):
        self.finetuner.cache.n_built = self.n_built
        if seed == self.ends_in:
            raise self.error
        return SimpleNamespace(result={"seed": seed, "students": []}, trained={})


def run_stopped(output_dir, *options):
    argv = ["--seeds", "0", "1", "--output_dir", str(output_dir), *options]
    parsed = parse_arguments("", CONFIGS / "demo.yaml", argv, announce=False, task="boolq")
    Stopped(find_task("boolq"), CLASSIFICATION, *parsed).run()


@pytest.mark.parametrize(("ends_in", "error"), [(0, ValueError), (0, KeyboardInterrupt), (1, ValueError)])
def test_an_error_before_the_first_result_leaves_the_directory_free(ends_in, error, tmp_path, monkeypatch):
    monkeypatch.setattr(Stopped, "ends_in", ends_in)
    monkeypatch.setattr(Stopped, "error", error)
    monkeypatch.setattr(experiment, "keep_outputs", lambda *args: (args[-1] / "students").mkdir(exist_ok=True))

    is_free = ends_in == 0 and error is ValueError
    for _ in range(2):  # the same command is never refused
        with pytest.raises(error, match="^$"):
            run_stopped(tmp_path)
        assert (tmp_path / MANIFEST).is_file() != is_free
    with pytest.raises(ValueError, match="^$" if is_free else "learning_rate: 0.003 there, 0.0001 here"):
        run_stopped(tmp_path, "--learning_rate", "1e-4")


def test_an_error_says_that_finished_stages_are_kept(tmp_path, monkeypatch):
    monkeypatch.setattr(Stopped, "n_built", 3)
    with pytest.raises(ValueError) as error:
        run_stopped(tmp_path)
    (note,) = error.value.__notes__
    assert note.startswith("Finished stages of this run are kept (3). Repeat the command")


@pytest.mark.parametrize("is_true", [False, True], ids=["other students", "the same students"])
def test_predictions_are_removed_together_with_results(is_true, tmp_path, monkeypatch):
    monkeypatch.setattr(Stopped, "ends_in", 1)
    monkeypatch.setattr(experiment, "keep_outputs", lambda *args: None)
    monkeypatch.setattr(experiment, "is_still_true", lambda *args: is_true)
    files = [tmp_path / name for name in ("results.json", "predictions.parquet")]
    with pytest.raises(ValueError, match="^$"):
        run_stopped(tmp_path)
    for path in files:
        path.touch()
    with pytest.raises(ValueError, match="^$"):
        run_stopped(tmp_path)
    assert [path.exists() for path in files] == [is_true, is_true]


def test_results_are_kept_until_others_are_there_if_no_student_is_another(tmp_path):
    path = tmp_path / "results.json"
    results = json.loads((CARDS / "boolq-demo" / "results.json").read_text())
    path.write_text(json.dumps(results))
    (run,) = results["runs"]
    naive, confidence = ({**student} for student in run["students"])
    del naive["fingerprint"]  # the comparison adds it for the file
    bootstrap = naive | {"output": "students/bootstrap-seed0"}
    assert is_still_true(path, {"seed": 0, "students": [confidence, bootstrap, naive]})
    assert is_still_true(path, {"seed": 1, "students": [naive | {"accuracy": 0.5}]}), "another seed is added"
    assert not is_still_true(path, {"seed": 0, "students": [confidence, naive | {"accuracy": 0.5}]})
    assert not is_still_true(path, {"seed": 0, "students": [confidence]})
    path.write_text("{")
    assert not is_still_true(path, run) and not is_still_true(tmp_path / "none", run)


def test_a_stopped_run_without_results_is_named_as_one(tmp_path):
    first = wanted()
    first.seeds = []
    first.write(tmp_path)
    assert check(tmp_path, "--seeds 3"), "no seed is lost"
    with pytest.raises(ValueError, match="rows.' \\(started, no results yet\\) with other settings"):
        check(tmp_path, "--learning_rate 1")


def test_a_sweep_keeps_the_cells_that_its_grid_has_not(tmp_path):
    cell = Cell("boolq", "weak", "student", "naive", 0)
    (tmp_path / "cells").mkdir()
    for status, name in (("done", "student"), ("failed", "studnet")):
        record = {"status": status, "cell": vars(Cell("boolq", "weak", name, "naive", 0))}
        (tmp_path / "cells" / f"{name}.json").write_text(json.dumps(record))
    check_cells(tmp_path, [cell])  # a failed cell may be missing in the grid
    with pytest.raises(ValueError, match="1 finished cells that the grid does not have, such as student[.]"):
        check_cells(tmp_path, [Cell("boolq", "weak", "student", "naive", 1)])
    assert SweepArguments(weak_models=["a"], student_models=["b"]).overwrite_output_dir is False


# ---- Where results go ----


@pytest.mark.parametrize(
    ("options", "more", "expected"),
    [
        ("", {"task": "boolq"}, "outputs/demo"),
        ("", {"task": "sciq"}, "outputs/demo_sciq"),
        ("--methods naive bootstrap", {"task": "boolq"}, "outputs/demo_ladder"),
        ("--methods naive bootstrap", {"task": "sciq"}, "outputs/demo_ladder_sciq"),
        (
            "--config {configs}/demo_reward.yaml",
            KINDS["demo_reward"][2] | {"task": "anthropic_hh"},
            "outputs/demo_reward",
        ),
        (
            "--config={configs}/demo_chess.yaml",
            KINDS["demo_chess"][2] | {"task": "chess_puzzles"},
            "outputs/demo_chess",
        ),
        ("--task quail", {"experiment": AnyTaskArguments}, "outputs/demo_quail"),
        ("--weak_model a --student_model b", {"task": "sciq"}, "outputs/sciq"),
        ("--config {configs}/single_gpu.yaml --bf16 false", {"task": "boolq"}, "outputs/boolq"),
        (
            "--config {configs}/qwen_72b.yaml --bf16 false --task quail",
            {"experiment": AnyTaskArguments},
            "outputs/quail",
        ),
        ("--task {own} --weak_model a --student_model b", {"experiment": AnyTaskArguments}, "outputs/spam-1"),
        ("--output_dir mine", {"task": "boolq"}, "mine"),
    ],
)  # fmt: skip
def test_each_task_has_a_directory_of_its_own(options, more, expected, tmp_path):
    own = tmp_path / "own.py"
    own.write_text('from w2s_hf import Task\nA = Task("spam 1", "a.csv", "M: {m}", label="l")\n')
    argv = options.format(configs=CONFIGS, own=own).split()
    _, training_args, _ = parse_arguments(
        "", CONFIGS / "demo.yaml", [*argv, "--use_cpu", "true"], announce=False, **more
    )
    assert training_args.output_dir == expected
