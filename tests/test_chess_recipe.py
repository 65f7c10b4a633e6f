"""Runs the chess recipe as users do, with a small demo, and with local puzzles and models."""

import json
import random
import runpy
import sys
import time
import xml.etree.ElementTree as ElementTree

import chess
import pytest
from datasets import Dataset
from helpers.models import make_character_tokenizer, make_language_model
from helpers.predictions import check_predictions
from helpers.puzzles import random_rows
from helpers.running import ROOT, forked, numbers, recipe, recipe_here, start
from transformers import AutoTokenizer

from w2s_hf import CompletionConfig, load_student
from w2s_hf.config import StudentConfig
from w2s_hf.demo.forks import ForkWorld
from w2s_hf.experiments.cache import StageCache
from w2s_hf.experiments.cli import parse_arguments
from w2s_hf.experiments.config import ChessArguments
from w2s_hf.experiments.finetuner import Finetuner
from w2s_hf.experiments.settings.generation import GenerationSetting, complete_untrained
from w2s_hf.generation import complete
from w2s_hf.labels import Completion, WeakCompletions
from w2s_hf.modeling.spec import ModelSpec
from w2s_hf.tasks.chess import CHESS_PUZZLES
from w2s_hf.tasks.chess.scores import trivial_baselines

NAME = "chess.py"
CHESS = GenerationSetting(CHESS_PUZZLES)
DEMO_CONFIG = ROOT / "w2s_hf" / "configs" / "demo_chess.yaml"
SMALL = "--demo_documents 3200 --n_train 96 --n_weak 160 --n_validation 40 --n_test 120".split()


@pytest.fixture(scope="module")
def finished(cache, tmp_path_factory):
    """
    A small run: its directory, its output and its numbers. (The recipe has the name of python-chess, so it removes its
    directory from the import path first.)
    """
    output = tmp_path_factory.mktemp("run") / "out"
    process = recipe(*SMALL, "--output_dir", output, cache=cache, name=NAME)
    assert process.returncode == 0, process.stderr[-3000:]
    return output, process, numbers(output)


@pytest.fixture(scope="module")
def local(tmp_path_factory):
    """Local puzzles, and two local models for them."""
    directory = tmp_path_factory.mktemp("local")
    rows = random_rows(160)
    rows[0]["Moves"] = "a1a1 a2a2"
    Dataset.from_list(rows).to_json(directory / "puzzles.jsonl")
    tokenizer = make_character_tokenizer()
    for name in ("weak", "strong"):
        make_language_model(tokenizer).save_pretrained(directory / name)
        tokenizer.save_pretrained(directory / name)
    return directory


def on_local(local, output, *options) -> list[str]:
    settings = (
        "--max_length 160 --n_train 40 --n_weak 30 --n_validation 20 --n_test 30 --learning_rate 1e-3 "
        "--max_new_tokens 8 --bf16 false --gradient_checkpointing false --use_cpu true --report_to none "
        "--num_train_epochs 1 --dtype float32 --save_strategy no --lora_r 4 --per_device_eval_batch_size 16"
    )
    models = ["--weak_model", local / "weak", "--student_model", local / "strong"]
    return [*settings.split(), *models, "--dataset_path", local / "puzzles.jsonl", "--output_dir", output, *options]


def test_results_follow_the_schema(finished):
    output, process, results = finished
    assert (results["task"], results["setting"], results["preset"]) == ("chess_puzzles", "chess", "demo")
    check_predictions(output)
    (run,) = results["runs"]
    (student,) = run["students"]
    baselines = {entry["name"]: entry for entry in run["baselines"]}
    assert list(baselines) == ["zero-shot", "zero-shot, asked for a check", "random legal move", "random check"]
    assert 0.05 < baselines["random legal move"]["accuracy"] < 0.2 < 0.5 < baselines["random check"]["accuracy"] < 0.8
    models = [run["weak"], run["ceiling"], student, *run["controls"], *list(baselines.values())[:2]]
    for entry in models:
        for name in ("exact_match", "mate_accepted", "legal_rate"):
            low, high = entry[f"{name}_ci95"]
            assert low <= entry[name] <= high
        assert entry["exact_match"] <= entry["accuracy"] == entry["mate_accepted"] <= entry["legal_rate"]
        assert sum(band["n"] for band in entry["by_band"].values()) == entry["n"] == 120
        right = sum(band["n"] * band["accuracy"] for band in entry["by_band"].values())
        assert right == pytest.approx(120 * entry["accuracy"]) and 0 <= entry["n_cut"] <= 120
    weak, ceiling = run["weak"]["accuracy"], run["ceiling"]["accuracy"]
    if ceiling > weak:
        assert student["pgr"] == pytest.approx((student["accuracy"] - weak) / (ceiling - weak))
    else:
        assert student["pgr"] is None and "ceiling" in student["pgr_undefined"]
    assert set(student["agreement"]) == {"overall", "supervisor_right", "supervisor_wrong"}
    for words in ("This is the embedded demo", "random check", "zero-shot", "120 test puzzles"):
        assert words in process.stdout


def test_report_shows_baselines_bands_and_boards(finished):
    output, _, _ = finished
    report = (output / "report.md").read_text()
    for words in (
        "no decoys",
        "random check",
        "What this demo shows",
        "120 for testing",
        "| cut |",
        "Accuracy by kind",
    ):
        assert words in report
    assert "auroc" not in report and "aux_coef" not in report
    boards = sorted((output / "figures" / "boards").glob("*.svg"))
    assert boards and all(f"(figures/boards/{board.name})" in report for board in boards)
    for board in boards:
        root = ElementTree.parse(board).getroot()
        assert root.tag.endswith("svg") and "#009E73" in board.read_text()
    assert not list(output.rglob("*.partial")) and not list(output.rglob("completions"))
    page = (output / "students" / "naive-seed0" / "README.md").read_text()
    assert 'task_type="CAUSAL_LM"' in page


def test_weak_labels_are_the_supervisors_greedy_moves(finished):
    output, _, _ = finished
    labels = WeakCompletions.load(output / "weak_labels" / "seed0")
    assert len(labels) == 96 + 20 + 120
    supervisor = next((output / "_stages").glob("weak-*[0-9a-f]")) / "model"
    model = load_student(str(supervisor), task_type="CAUSAL_LM", dtype="float32")
    tokenizer = AutoTokenizer.from_pretrained(supervisor)
    prompt_of = {}
    for row in ForkWorld(seed=0).puzzles(160 + 96 + 40 + 120):
        example = CHESS_PUZZLES.example(row)
        prompt_of[example["id"]] = example["prompt"]
    chosen = labels.ids[::25]
    completions = complete(model, tokenizer, [prompt_of[row_id] for row_id in chosen], max_new_tokens=4, batch_size=1)
    assert completions == labels.of(chosen)


def test_the_student_learned_the_weak_moves_and_never_the_truth(finished):
    stage = json.loads(next((finished[0] / "_stages").glob("student-naive-*[0-9a-f]/stage.json")).read_text())
    provenance = json.loads(
        next((finished[0] / "_stages").glob("student-naive-*[0-9a-f]/predictions/provenance.json")).read_text()
    )
    labels = WeakCompletions.load(finished[0] / "weak_labels" / "seed0")
    assert provenance["weak_labels"] == labels.fingerprint
    ceiling = json.loads(next((finished[0] / "_stages").glob("ceiling-*[0-9a-f]/stage.json")).read_text())
    for part in ("train", "validation"):
        assert stage["settings"][part] != ceiling["settings"][part]
    assert stage["settings"]["predict"] == ceiling["settings"]["predict"]


def test_a_second_run_trains_nothing(finished, cache):
    before = numbers(finished[0])
    process = recipe_here(*SMALL, "--output_dir", finished[0], cache=cache, name=NAME)
    assert process.returncode == 0 and "Nothing was trained" in process.stderr
    assert numbers(finished[0]) == before
    assert not list((finished[0] / "_stages").glob("*.partial"))


def test_killed_while_it_labels_and_run_again(finished, cache, tmp_path):
    options = [*SMALL, "--output_dir", str(tmp_path / "out")]
    # With one puzzle per batch, there is time to kill the run. The batch size changes no number, so it is not in the
    # keys.
    command = [ROOT / "recipes" / NAME, *options, "--per_device_eval_batch_size", "1"]
    process = start(*command, log=tmp_path / "log", W2S_HF_CACHE=str(cache))
    written = "out/_stages/weak-*.partial/completions/rank0.jsonl"
    while process.is_alive() and not any(tmp_path.glob(written)):
        time.sleep(0.002)
    time.sleep(random.uniform(0, 0.05))
    assert process.is_alive(), "the run finished before it was killed"
    process.kill()
    process.join()
    process = recipe_here(*options, cache=cache, name=NAME)
    assert process.returncode == 0, process.stderr[-3000:]
    assert "completions are cached" in process.stderr
    assert numbers(tmp_path / "out")["runs"] == finished[2]["runs"]
    one, other = (WeakCompletions.load(output / "weak_labels" / "seed0") for output in (finished[0], tmp_path / "out"))
    assert other.completions == one.completions


def losses_of(output, name: str) -> list[float]:
    history = json.loads(next((output / "_stages").glob(f"{name}-*[0-9a-f]/training.json")).read_text())
    return [entry["loss"] for entry in history if "loss" in entry]


@pytest.mark.distributed
@pytest.mark.slow
def test_two_ranks_run_as_one(finished, cache, tmp_path):
    options = [*SMALL, "--per_device_train_batch_size", "16", "--output_dir", tmp_path / "out"]
    process = forked(ROOT / "recipes" / NAME, *options, n_ranks=2, W2S_HF_CACHE=str(cache))
    assert process.returncode == 0, process.stderr[-3000:]
    assert process.stdout.count("random check") == 1
    (one,), (two,) = finished[2]["runs"], numbers(tmp_path / "out")["runs"]
    assert two["weak"]["n"] == one["weak"]["n"] and two["split_fingerprint"] == one["split_fingerprint"]
    assert two["baselines"] == one["baselines"]
    # Small models predict few moves correctly, so accuracies are not informative.
    outputs = finished[0], tmp_path / "out"
    for name in ("weak", "ceiling", "student-naive"):
        ours, theirs = (losses_of(output, name) for output in outputs)
        assert len(ours) > 2 and ours[-1] < ours[0] and theirs == pytest.approx(ours, rel=1e-4), name
    ours, theirs = (WeakCompletions.load(output / "weak_labels" / "seed0") for output in outputs)
    assert len(set(ours.completions)) > 5, "with equal answers to all puzzles, the comparison would be trivial"
    # Another order of summation changes a few moves at most.
    is_same = [mine == other for mine, other in zip(theirs.completions, ours.of(theirs.ids), strict=True)]
    assert sum(is_same) >= 0.95 * len(is_same)


@pytest.mark.slow
def test_local_puzzles_with_adapters_and_easy_to_hard(local, cache, tmp_path):
    options = on_local(local, tmp_path / "out", "--max_train_rating", "1300", "--min_hard_rating", "1800")
    process = recipe_here(*options, cache=cache, name=NAME)
    assert process.returncode == 0, process.stderr[-3000:]
    results = numbers(tmp_path / "out")
    assert results["preset"] == "custom" and results["dataset"]["id"] == "puzzles.jsonl"
    assert results["dataset"]["n_dropped"] == {"an illegal move": 1}
    (run,) = results["runs"]
    assert [entry["name"] for entry in run["baselines"]] == ["zero-shot", "random legal move", "random check"]
    entries = run["easy_to_hard"]["trained_on"]
    assert set(entries) == {"easy", "any rating", "all"}
    assert entries["easy"]["n_train"] == entries["any rating"]["n_train"] < entries["all"]["n_train"] == 40
    for entry in entries.values():
        assert entry["on_all"]["n"] == 30 > entry["on_hard"]["n"] > 0
    assert entries["all"]["on_all"]["accuracy"] == run["ceiling"]["accuracy"]
    report = (tmp_path / "out" / "report.md").read_text()
    assert "rated at most 1300" in report and "Accuracy by rating" in report and "1 with an illegal move" in report
    student = tmp_path / "out" / "students" / "naive-seed0"
    assert (student / "adapter_config.json").is_file()
    model = load_student(str(student), task_type="CAUSAL_LM", dtype="float32")
    labels = WeakCompletions.load(next((tmp_path / "out" / "_stages").glob("student-*[0-9a-f]")) / "predictions")
    tokenizer = AutoTokenizer.from_pretrained(student)
    rows = Dataset.from_json(str(local / "puzzles.jsonl"))
    prompts = {example["id"]: example["prompt"] for example in map(CHESS_PUZZLES.example, rows.select(range(1, 160)))}
    completions = complete(model, tokenizer, [prompts[row_id] for row_id in labels.ids], max_new_tokens=8)
    assert completions == labels.completions


def test_zero_shot_is_the_model_before_any_finetuning(local, tmp_path):
    args = CompletionConfig(output_dir=str(tmp_path), max_new_tokens=6, use_cpu=True, bf16=False, report_to="none")
    finetuner = Finetuner(StageCache(tmp_path / "_stages"), CHESS, args)
    model = ModelSpec.find(str(local / "strong"), "--student_model", StudentConfig(dtype="float32"))
    rows = Dataset.from_dict({"id": ["a", "b"], "prompt": ["a b:", "c:"]})
    completions = complete_untrained(finetuner, "zero-shot", model, rows, {})
    network = make_language_model(make_character_tokenizer()).eval()
    assert completions == complete(network, make_character_tokenizer(), rows["prompt"], max_new_tokens=6)


def test_trivial_baselines_by_hand():
    mates = "6k1/5ppp/8/8/8/8/8/R3R2K w - - 0 1"
    quiet = "7k/8/8/8/8/8/8/K7 w - - 0 1"  # no check is possible, so any of the three moves is correct
    rows = Dataset.from_dict({"fen": [mates, quiet, mates], "ground_truth": [" Ra8#", " Kb2", " Re7"]})
    n_moves = chess.Board(mates).legal_moves.count()
    n_checks = sum(chess.Board(mates).gives_check(move) for move in chess.Board(mates).legal_moves)
    any_move, any_check = trivial_baselines(rows)
    assert any_move["accuracy"] == pytest.approx((2 / n_moves + 1 / 3) / 3)
    assert any_check["accuracy"] == pytest.approx((1 / n_checks + 1 / 3) / 3) and n_checks == 2
    low, high = any_check["ci95"]
    assert 0 <= low < any_check["accuracy"] < high <= 1 and any_check["n"] == 3


def test_agreement_is_about_moves_and_not_about_words():
    rows = Dataset.from_dict({"fen": [chess.STARTING_FEN] * 4, "ground_truth": [" e4"] * 4})
    ours = [Completion(text, False) for text in (" e4", " e4+", " Ke5", " d4")]
    theirs = [Completion(text, False) for text in (" e2e4", " d4", " Ke5", " Ke5")]
    assert CHESS.agrees(ours, theirs, rows).tolist() == [True, False, True, False]
    assert CHESS.is_correct(ours, rows).tolist() == [True, True, False, False]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--methods naive confidence", "expected naive, bootstrap or a method of your own with the loss"),
        ("--config {config} --max_train_rating 1000", "the demo, whose puzzles have no rating"),
        ("--weak_model a --max_train_rating 1000 --min_hard_rating 900", "expected more than --max_train_rating 1000"),
        ("--config {config} --max_new_tokens 0", "max_new_tokens: got 0"),
        ("--weak_model a --use_cpu true --bf16 false", "Got no --student_model"),
    ],
)
def test_wrong_options_say_what_to_do(options, message, capsys):
    with pytest.raises(SystemExit):
        parse_arguments(
            "text", DEMO_CONFIG, options.format(config=DEMO_CONFIG).split(), ChessArguments, CompletionConfig
        )
    assert message in capsys.readouterr().err.replace("\n", " ")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--max_train_rating", "100"], "no puzzle of `student_half` has a rating up to this number"),
        (["--max_train_rating", "1500", "--min_hard_rating", "3000"], "no test puzzle has this rating or more"),
        (["--max_new_tokens", "2"], "Set --max_new_tokens"),
        (["--max_length", "4000"], "max_length: got 4000, expected at most 160, the context length of weak"),
        (["--max_length", "40"], "got no usable puzzle in the split 'train'"),
        (["--n_train", "5000"], "got --n_train 5000"),
    ],
)
def test_puzzles_that_do_not_do_end_it_with_one_line(local, cache, tmp_path, options, message):
    process = recipe_here(*on_local(local, tmp_path / "out", *options), cache=cache, name=NAME)
    assert process.returncode == 1 and message in process.stderr and "Traceback" not in process.stderr


def test_the_papers_configuration_parses(tmp_path):
    config = ROOT / "w2s_hf" / "configs" / "single_gpu_chess.yaml"
    argv = ["--config", str(config), "--output_dir", str(tmp_path), "--use_cpu", "true"]
    args, training_args, student = parse_arguments("", DEMO_CONFIG, argv, ChessArguments, CompletionConfig)
    assert (args.n_weak, args.n_train, args.n_test, training_args.num_train_epochs) == (50_000, 50_000, 5_000, 5)
    assert training_args.per_device_train_batch_size * training_args.gradient_accumulation_steps == 32
    assert student.load_in_4bit and student.use_peft and not training_args.load_best_model_at_end


def test_without_python_chess_it_says_what_to_install(monkeypatch):
    for name in [name for name in sys.modules if "chess" in name.split(".")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "chess", None)
    with pytest.raises(SystemExit, match=r"^error: chess_puzzles: .*expected python-chess. Run `pip install"):
        runpy.run_path(str(ROOT / "recipes" / NAME), run_name="__main__")
