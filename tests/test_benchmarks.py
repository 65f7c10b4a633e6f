"""Runs small versions of the benchmarks. Speed is not tested, because it needs an idle machine."""

import importlib
import json
import math
import statistics
from pathlib import Path
from types import SimpleNamespace

import pytest
from datasets import Dataset
from helpers.models import make_character_tokenizer, make_language_model, make_model, make_tokenizer
from helpers.running import ROOT, forked

BENCHMARKS = ROOT / "recipes" / "benchmarks"
# The interpreter can import modules beside a script, but `runpy` cannot.
LAUNCHER = f"import runpy, sys\nsys.path.insert(0, {str(BENCHMARKS)!r})\ndel sys.argv[0]\n"
LAUNCHER += "runpy.run_path(sys.argv[0], run_name='__main__')\n"

PIPELINE = "--weak 32x1 --strong 64x1 --vocab_size 300 --n_weak 64 --n_train 48 --n_test 40 --mean_length 12"
PIPELINE += " --weak_learning_rate 1e-2 --learning_rate 5e-3 --max_tokens_per_micro_batch 128 --repetitions 1"
THROUGHPUT = "--width 64 --n_layers 1 --n_rows 24 --batch_size 8 --micro_batches 2 8 --equal_micro_batches 4"
THROUGHPUT += " --mean_length 12 --max_length 64 --token_budget 64 --repetitions 2 --group_by_length"


def run(name: str, options: str, directory: Path) -> tuple[SimpleNamespace, dict]:
    """Runs a benchmark and returns the process and its report."""
    launcher, output = directory / "launcher.py", directory / "report.json"
    launcher.write_text(LAUNCHER)
    process = forked(launcher, BENCHMARKS / name, *options.split(), "--output_file", output)
    return process, json.loads(output.read_text()) if output.exists() else {}


@pytest.fixture
def module(monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS)
    return importlib.import_module


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory):
    process, report = run("pipeline.py", f"{PIPELINE} --no_warm_up", tmp_path_factory.mktemp("pipeline"))
    assert process.returncode == 0, process.stderr[-3000:]
    return process, report


def test_ours_and_the_published_loop_train_the_same_models(pipeline):
    _, report = pipeline
    equality = report["equality"]
    assert equality["is_equal"] and equality["tolerance"] == 1e-3
    assert set(equality["largest_difference"]) == {"weak", "ceiling", "naive", "openai"}
    assert all(difference < 1e-4 for difference in equality["largest_difference"].values())
    ours, published, lora = report["results"]
    assert [row["same_mathematics"] for row in report["results"]] == [True, True, False]
    assert ours["accuracy"] == published["accuracy"] != lora["accuracy"]


def test_speed_of_the_pipeline_is_told_by_its_seconds(pipeline):
    process, report = pipeline
    assert [row["contender"] for row in report["results"]] == ["ours", "published", "ours, LoRA"]
    # Two epochs of the weak half and of three student halves; predictions of the student half and of four test sets.
    assert report["counted_rows"] == {"trained": 2 * (64 + 3 * 48), "predicted": 48 + 4 * 40}
    ours, published, _ = report["results"]
    assert report["ratio"] == ours["ratio"] == pytest.approx(published["seconds"] / ours["seconds"])
    for row in report["results"]:
        assert set(row["seconds_by_stage"]) == {"weak", "ceiling", "naive", "openai", "rest"}
        assert sum(row["seconds_by_stage"].values()) == pytest.approx(row["seconds"])
        assert all(seconds > 0 for seconds in row["seconds_by_stage"].values())
        assert row["rows_per_second"] == pytest.approx((416 + 208) / row["seconds"])
    assert process.stdout.startswith(f"Our experiment is {report['ratio']:.2f} times as fast")
    assert "not the same mathematics" in process.stdout and "Largest difference" in process.stdout
    assert {"torch", "transformers", "w2s_hf"} <= set(report["versions"]) and report["threads"] > 0


def test_no_report_names_this_machine(pipeline):
    text = json.dumps(pipeline[1])
    assert str(Path.home()) not in text and "/tmp" not in text and str(ROOT) not in text


@pytest.mark.slow
def test_another_order_of_rows_is_no_comparison_and_the_script_says_so(tmp_path):
    process, report = run("pipeline.py", f"{PIPELINE} --no_lora --train_sampling_strategy random", tmp_path)
    assert process.returncode == 1
    assert (
        "error: Got different probabilities from our settings" in process.stderr and "Traceback" not in process.stderr
    )
    assert not report["equality"]["is_equal"]
    # The small differences in the test above therefore come from models that have learned from their rows.
    assert all(difference > 1e-3 for difference in report["equality"]["largest_difference"].values())


def test_no_number_is_no_small_difference(module):
    is_equal = module("pipeline").is_equal
    assert is_equal({"weak": 1e-3, "naive": 0.0}, 1e-3)
    assert not is_equal({"weak": 0.0, "naive": 2e-3}, 1e-3)
    assert not is_equal({"weak": math.nan}, 1e-3)


def test_real_rows_need_their_tokenizer(tmp_path):
    process, report = run("pipeline.py", "--dataset_path rows", tmp_path)
    assert process.returncode == 2 and "expected both" in process.stderr and not report


def test_made_rows_are_read_as_boolq_and_their_words_tell_the_answer(module):
    rows_of = module("benchmark_rows")
    rows = rows_of.boolq_rows(400, mean_length=60, vocab_size=500, seed=3)
    assert sum(rows["answer"]) == 200 and len(set(rows["passage"])) == 400
    lengths = [len(passage.split()) for passage in rows["passage"]]
    assert statistics.mean(lengths) == pytest.approx(60, rel=0.1) and min(lengths) >= 8 and max(lengths) > 100
    tokenizer = rows_of.word_tokenizer(500)
    texts = [f"{row['passage']}\nQuestion: {row['question']}" for row in rows]
    assert not any(tokenizer.unk_token_id in ids for ids in tokenizer(texts)["input_ids"]) and len(tokenizer) == 500

    def says_yes(passage: str) -> bool:
        telling = [int(word[1:]) for word in passage.split() if int(word[1:]) < 32]
        return sum(16 <= word for word in telling) > len(telling) / 2

    right = statistics.mean(says_yes(row["passage"]) == row["answer"] for row in rows)
    assert 0.85 < right < 1


def test_trainers_are_compared_at_equal_micro_batches_and_with_the_best(tmp_path):
    process, report = run("throughput.py", THROUGHPUT, tmp_path)
    assert process.returncode == 0, process.stderr[-3000:]
    for variant in ("", ", group_by_length"):
        names = [f"Trainer, micro-batch {size}{variant}" for size in (2, 4, 8)]
        of_variant = [row for row in report["results"] if row["task"] == "train"]
        of_variant = {row["trainer"]: row for row in of_variant if ("group_by" in row["trainer"]) == bool(variant)}
        equal, budget = (f"WeakToStrongTrainer, {cut}{variant}" for cut in ("micro-batch 4", "token budget"))
        assert set(of_variant) == {*names, equal, budget}
        (best,) = [name for name, row in of_variant.items() if row["is_best_trainer"]]
        assert best in names
        assert statistics.median(of_variant[best]["seconds"]) == min(
            statistics.median(of_variant[name]["seconds"]) for name in names
        )
        assert of_variant[equal]["compared_with"] == f"Trainer, micro-batch 4{variant}"
        assert {of_variant[name]["compared_with"] for name in (*names, budget)} == {best}
        for row in of_variant.values():
            pairs = zip(of_variant[row["compared_with"]]["seconds"], row["seconds"], strict=True)
            assert row["ratio"] == pytest.approx(statistics.median(theirs / own for theirs, own in pairs))
            assert row["rows_per_second"] == pytest.approx(24 / statistics.median(row["seconds"]))
    predicted = [row for row in report["results"] if row["task"] == "predict"]
    assert [(row["trainer"], row["compared_with"]) for row in predicted] == [
        ("Trainer", "Trainer"), ("WeakToStrongTrainer", "Trainer")
    ]  # fmt: skip
    assert "(the best Trainer)" in process.stdout
    assert str(tmp_path) not in json.dumps(report)


def test_a_micro_batch_that_does_not_fill_the_step_is_refused(tmp_path):
    process, report = run("throughput.py", "--batch_size 8 --micro_batches 3", tmp_path)
    assert process.returncode == 2 and "Got a micro-batch of 3 rows" in process.stderr and not report


def test_every_contender_takes_the_same_optimizer_steps(module, monkeypatch, tmp_path):
    throughput = module("throughput")
    monkeypatch.setattr("sys.argv", ["throughput.py", *THROUGHPUT.split()])
    options = throughput.parse_options()
    rows = throughput.token_rows(24, 12, 64, throughput.VOCAB_SIZE)
    for contender in throughput.contenders_of(options):
        trainer = contender.make(options, rows, str(tmp_path))
        trainer.train()
        assert trainer.state.global_step == 3, contender.name


@pytest.mark.parametrize("way", ["--load_in_4bit", "--no_checkpointing"])
def test_a_student_of_random_weights_trains_and_is_counted(way, tmp_path):
    """Runs the code path of a 72B student on a GPU, with a small model on a CPU."""
    options = f"--model Qwen/Qwen-72B {way} --width 64 --layers 2 --n_rows 2 --length 16 --max_tokens 16 --steps 2"
    process, report = run("student_on_gpu.py", options, tmp_path)
    assert process.returncode == 0, process.stderr[-3000:]
    assert len(report["losses"]) == 2 and all(math.isfinite(loss) for loss in report["losses"])
    assert report["peak_bytes"] is None and "Peak memory is measured on GPUs only" in process.stdout
    assert report["tokens_per_second"] == pytest.approx(32 / report["seconds_per_step"])
    mlp = 24_576 * 64 // 8192
    body = 2 * (4 * 64 * 64 + 3 * 64 * mlp)
    lora = 2 * 16 * (4 * (64 + 64) + 3 * (64 + mlp))
    small = 1000 * 64 + 2 * (3 * 64 + 2 * 64) + 64 + 2 * 2 * 64  # embedding; biases, norms; the head and its copy
    assert report["n_parameters"] == body + lora + small
    attention = 2 * 2 * 2 * 1 * 64 * 16 / 2  # layers, one head of 64, half of 16 tokens
    by_hand = 4 * (body + 2 * 64) + 6 * (lora + 2 * 64) + 3 * attention  # the original head is frozen
    assert report["tflops_per_second"] * 1e12 == pytest.approx(by_hand * report["tokens_per_second"], rel=1e-6)


def test_a_benchmark_of_one_step_is_refused(tmp_path):
    process, report = run("student_on_gpu.py", "--steps 1", tmp_path)
    assert process.returncode == 2 and "expected 2 or more" in process.stderr and not report


def test_prompts_of_a_task_are_asked_once(tmp_path):
    tokenizer = make_character_tokenizer()
    make_language_model(tokenizer, small=True).save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    for split, start in (("train", 0), ("validation", 100)):
        sentences = [f"a film of {n}" for n in range(start, start + 60)]
        rows = Dataset.from_dict({"sentence": sentences, "label": [n % 2 for n in range(60)]})
        rows.to_parquet(tmp_path / "data" / "sst2" / f"{split}.parquet")
        goals = [f"do {n}" + (" and so on" * 20) * (n == 100) for n in range(start, start + 12)]
        solutions = {f"sol{k}": [f"way {k} of {goal[:6]}" for goal in goals] for k in (1, 2)}
        rows_of_piqa = Dataset.from_dict({"goal": goals, **solutions, "label": [n % 2 for n in range(12)]})
        rows_of_piqa.to_parquet(tmp_path / "data" / "piqa" / f"{split}.parquet")
    options = f"--model {tmp_path / 'model'} --model_name tiny --data {tmp_path / 'data'} --n_test 20 --max_length 150"
    options += " --tasks sst2 piqa boolq"
    process, report = run("prompts.py", options, tmp_path)
    assert process.returncode == 0, process.stderr[-3000:]
    assert "Tasks without a folder in" in process.stdout and "| sst2 | 20 |" in process.stdout
    assert [(entry["task"], entry["form"], entry["n"]) for entry in report["results"]] == [
        ("sst2", "task", 20),
        ("sst2", "01", 20),
        ("piqa", "task", 20),
        ("piqa", "01", 20),
    ]
    assert "piqa: skipped 2 rows that do not fit into 150 tokens" in process.stdout
    assert report["model"] == "tiny" and str(tmp_path) not in json.dumps(report) and "a film" not in json.dumps(report)
    again, unchanged = run("prompts.py", options, tmp_path)
    assert "sst2: " in process.stdout and "sst2: " not in again.stdout and unchanged == report
    assert report["weights"] and all("torch" in entry["versions"] for entry in report["results"])

    # After a change of the rows of one task, its scores are computed again.
    rows.select(range(50)).to_parquet(tmp_path / "data" / "sst2" / "validation.parquet")
    _, changed = run("prompts.py", options, tmp_path)
    assert [entry["rows"] for entry in changed["results"]] != [entry["rows"] for entry in report["results"]]

    # Another number of rows, or other weights under the same name, need another report.
    make_language_model(tokenizer).save_pretrained(tmp_path / "other")
    tokenizer.save_pretrained(tmp_path / "other")
    for words in (("--n_test 20", "--n_test 10"), (str(tmp_path / "model"), str(tmp_path / "other"))):
        other, _ = run("prompts.py", options.replace(*words), tmp_path)
        assert other.returncode == 2 and "has results of other settings" in other.stderr

    # Mistakes are refused before a model is loaded. An encoder would predict with a head of random weights.
    make_model("bert").save_pretrained(tmp_path / "encoder")
    make_tokenizer().save_pretrained(tmp_path / "encoder")
    for old, new, words in (
        (str(tmp_path / "model"), str(tmp_path / "encoder"), "--model: got encoder of type 'bert'"),
        (str(tmp_path / "data"), str(tmp_path / "nowhere"), "expected one of the folders sst2, piqa, boolq in this"),
        ("--n_test 20", "--n_test 1", "--n_test: got 1, expected at least 2"),
    ):
        refused, _ = run("prompts.py", options.replace(old, new), tmp_path)
        assert refused.returncode == 2 and words in refused.stderr, refused.stderr[-1000:]
    output, elsewhere = tmp_path / "report.json", tmp_path / "new" / "folder" / "report.json"
    output.write_text("{")
    command = [tmp_path / "launcher.py", BENCHMARKS / "prompts.py", *options.split(), "--output_file"]
    half = forked(*command, output)
    assert half.returncode == 2 and "report.json, expected JSON" in half.stderr
    forked(*command, elsewhere)
    assert json.loads(elsewhere.read_text())["results"]
