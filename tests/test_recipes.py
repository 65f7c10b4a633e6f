"""Tests recipes as users run them, on a small demo."""

import json
import os
import random
import re
import runpy
import shutil
import signal
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import Dataset
from helpers.predictions import check_predictions
from helpers.running import ROOT, SMALL, TINY, forked, numbers, recipe, recipe_here, start
from helpers.task_rows import MESSAGES, passages
from huggingface_hub import constants
from transformers import AutoTokenizer

from w2s_hf import TASKS, WeakLabels, load_student, metrics, read_results
from w2s_hf.demo.rows import demo_rows
from w2s_hf.demo.worlds import DemoWorld
from w2s_hf.experiments.cli import parse_arguments
from w2s_hf.experiments.config import AnyTaskArguments
from w2s_hf.leaderboard import find_cards, leaderboard

DEMO_CONFIG = ROOT / "w2s_hf" / "configs" / "demo.yaml"


@pytest.fixture(scope="module")
def finished(cache, tmp_path_factory):
    """A small run: its directory, its output and its results. (`test_two_ranks_run_the_recipe` starts it.)"""
    output = tmp_path_factory.mktemp("run") / "out"
    process = recipe_here(*SMALL, "--output_dir", output, cache=cache)
    assert process.returncode == 0, process.stderr[-3000:]
    return output, process, numbers(output)


def test_output_is_all_there(finished):
    output, process, _ = finished
    assert "This is the embedded demo" in process.stdout.splitlines()[0]
    assert "--config single_gpu\n" in process.stdout
    assert "it/s" in process.stderr  # progress bars
    for word in (
        "weak supervisor",
        "student, naive",
        "student, confidence",
        "strong ceiling",
        "not pretrained",
        "PGR",
    ):
        assert word in process.stdout
    report = (output / "report.md").read_text()
    assert report.startswith("# Weak-to-strong generalization: boolq (demo: generated rows)\n")
    assert (
        "The rows of this demo are generated, without data of boolq. The rows imitate this task: Yes/no questions"
        in report
    )
    assert "\nboolq (demo: generated rows)\n" in process.stdout
    card = (output / "students" / "naive-seed0" / "README.md").read_text()
    assert "name: 'boolq (demo: generated rows)'" in card and "\n- boolq\n" not in card
    assert "# demo/pretrained-64x2 finetuned on boolq (demo: generated rows) labels of demo/scratch-32x1\n" in card
    assert "What this demo shows, and what it does not" in report and "(figures/accuracy.png)" in report
    assert (output / "figures" / "accuracy.png").stat().st_size > 10_000
    assert not list(output.rglob("*.partial")) and not list(output.rglob("training_args.bin"))


def test_results_follow_the_schema(finished):
    results = json.loads((finished[0] / "results.json").read_text())
    assert results["schema"] == 1 and results["task"] == "boolq" and results["preset"] == "demo"
    assert {name: results["dataset"][f"n_{name}"] for name in ("weak_half", "student_half", "validation", "test")} == {
        "weak_half": 96, "student_half": 160, "validation": 40, "test": 120
    }  # fmt: skip
    (run,) = results["runs"]
    for entry in (run["weak"], run["ceiling"], *run["students"], *run["controls"]):
        assert entry["n"] == 120 and entry["ci95"][0] <= entry["accuracy"] <= entry["ci95"][1]
    for student in run["students"]:
        gap = run["ceiling"]["accuracy"] - run["weak"]["accuracy"]
        if gap > 0:
            expected = (student["accuracy"] - run["weak"]["accuracy"]) / gap
            assert student["pgr"] == pytest.approx(expected) and student["pgr_undefined"] is None
        else:
            assert student["pgr"] is None and "ceiling" in student["pgr_undefined"]
        assert set(student["agreement"]) == {"overall", "supervisor_right", "supervisor_wrong"}
    assert [entry["method"] for entry in results["summary"]] == ["naive", "confidence"]
    assert {"torch", "transformers", "peft", "w2s_hf"} <= set(results["versions"])
    assert results["wall_seconds"]["total"] > 0
    assert set(check_predictions(finished[0])["role"]) == {"weak", "control", "naive", "confidence", "ceiling"}


def difference_to_what_was_scored(output: Path, method: str, **loading) -> float:
    """Returns the largest difference between stored predictions of five test rows and those of the loaded student."""
    stored = WeakLabels.load(next((output / "_stages").glob(f"student-{method}-*[0-9a-f]")) / "predictions")
    student = load_student(str(output / "students" / f"{method}-seed0"), dtype="float32", **loading)
    tokenizer = AutoTokenizer.from_pretrained(output / "students" / f"{method}-seed0")
    rows = demo_rows(TASKS["boolq"], DemoWorld(seed=0), 3 * 120 // 2 + 100, "test")
    text_of = {example["id"]: example["text"] for row in rows for example in TASKS["boolq"].examples(row)}
    logits = [student(**tokenizer(text_of[row_id], return_tensors="pt")).logits for row_id in stored.ids[:5]]
    return np.abs(torch.cat(logits).softmax(-1).detach().numpy() - stored.of(stored.ids[:5])).max()


@pytest.mark.parametrize("method", ["naive", "confidence"])
def test_a_student_loads_alone_and_predicts_what_was_scored(finished, method):
    assert difference_to_what_was_scored(finished[0], method) < 1e-5


def test_weak_labels_say_where_they_come_from(finished):
    labels = WeakLabels.load(finished[0] / "weak_labels" / "seed0")
    assert len(labels) == 160 + 20 + 120
    assert {"model", "task", "dataset", "split_fingerprint", "seed", "versions", "stage"} <= set(labels.provenance)


def test_logs_and_configurations_say_what_the_labels_are(finished):
    """The supervisor is trained on true labels, a student on weak labels. Classes have the names of the task."""
    for stage in (finished[0] / "_stages").glob("*[0-9a-f]"):
        logged = {key for entry in json.loads((stage / "training.json").read_text()) for key in entry}
        is_weak = not stage.name.startswith(("weak", "ceiling"))
        assert ("eval_weak_agreement" in logged, "eval_accuracy" in logged) == (is_weak, not is_weak), stage.name
        config = stage / "model" / "config.json"
        if stage.name.startswith(("weak", "control")):  # all weights
            assert json.loads(config.read_text())["id2label"] == {"0": "no", "1": "yes"}
    card = (finished[0] / "students" / "naive-seed0" / "README.md").read_text()
    assert 'load_student(".", id2label={0: "no", 1: "yes"}, dtype="float32")' in card


def test_no_file_for_readers_names_this_machine(finished):
    output, _, _ = finished
    for path in [output / "results.json", output / "report.md", *output.glob("students/*/README.md")]:
        assert str(output) not in path.read_text() and str(Path.home()) not in path.read_text()


def test_the_same_run_again_trains_nothing_and_says_so(finished, cache):
    """The keys are the same in a process with another hash seed."""
    output, _, before = finished
    process = forked(ROOT / "recipes" / "boolq.py", *SMALL, "--output_dir", output, W2S_HF_CACHE=str(cache))
    assert process.returncode == 0, process.stderr[-3000:]
    assert "Nothing was trained" in process.stderr
    assert numbers(output) == before


def test_a_changed_learning_rate_trains_what_it_changes_and_no_more(finished, cache, tmp_path):
    output, _, before = finished
    shutil.copytree(output, tmp_path / "out")
    options = [*SMALL, "--output_dir", tmp_path / "out", "--weak_learning_rate", "1e-3"]
    (tmp_path / "out" / "students" / "naive-seed7").mkdir()
    process = recipe_here(*options, cache=cache)
    assert process.returncode == 1 and "weak supervisor, learning_rate: 0.003 there, 0.001 here" in process.stderr
    assert numbers(tmp_path / "out") == before and (tmp_path / "out" / "students" / "naive-seed7").is_dir()
    process = recipe_here(*options, "--overwrite_output_dir", "true", cache=cache)
    assert process.returncode == 0, process.stderr[-3000:]
    assert {path.name for path in (tmp_path / "out" / "students").iterdir()} == {"naive-seed0", "confidence-seed0"}
    # Supervisor, both students and the control are new; the ceiling and the three models of the demo are not.
    assert "Stages: 4 computed, 4 cached." in process.stderr
    steps = re.findall(r"^(\d) of 6: ([\w ]+).*?( \(cached\))?$", process.stderr, flags=re.MULTILINE)
    assert [number for number, _, _ in steps] == list("123456")
    assert [" ".join(title.split()[:2]) for _, title, _ in steps] == [
        "pretraining of", "weak supervisor", "strong ceiling", "student", "student", "control without"
    ]  # fmt: skip
    assert [bool(is_cached) for _, _, is_cached in steps] == [True, False, True, False, False, False]
    assert not re.search(r"-[0-9a-f]{12}", process.stderr), "keys of the cache are for debugging"
    weak = numbers(tmp_path / "out")["runs"][0]["weak"]
    assert weak != before["runs"][0]["weak"]
    # With so low a rate the supervisor learns little, which the log says before a student is trained.
    assert weak["label_confidence"] < 0.6
    assert -1 < process.stderr.find("the weak labels are unsure") < process.stderr.find(": student (naive)")


STOPPED = "\nStopped. Repeat the command to resume the run.\n"

# A training of each kind, and where it keeps its checkpoints; the ceiling trains as a student does.
TRAININGS = {
    "pretraining": "cache/demo_ladder/pretrained-64x2-*.partial/pretraining",
    "supervisor": "out/_stages/weak-*.partial/checkpoints",
    "student": "out/_stages/student-confidence-*.partial/checkpoints",
}


def test_killed_and_run_again_ends_with_the_same_numbers(finished, tmp_path):
    """Each kind of stage is killed after its first checkpoint, at a random time. The next run resumes it."""
    command = [ROOT / "recipes" / "boolq.py", *SMALL, "--output_dir", tmp_path / "out"]
    own_cache = str(tmp_path / "cache")  # the ladder is rebuilt here, so pretraining is killed too
    for kind, pattern in TRAININGS.items():
        process = start(*command, log=tmp_path / "log", W2S_HF_CACHE=own_cache)
        while process.is_alive() and not any(tmp_path.glob(f"{pattern}/checkpoint-*/trainer_state.json")):
            time.sleep(0.002)
        time.sleep(random.uniform(0, 0.02))  # a fast machine trains the supervisor in a tenth of a second
        process.kill()
        process.join()
        assert any(tmp_path.glob(pattern)), f"{kind} finished before it was killed, so the test is trivial"
    process = forked(*command, W2S_HF_CACHE=own_cache)
    assert process.returncode == 0, process.stderr[-3000:]
    assert "resumed" in process.stderr
    found, expected = numbers(tmp_path / "out"), finished[2]
    assert found["runs"] == expected["runs"] and found["summary"] == expected["summary"]
    one, other = (place / "predictions.parquet" for place in (tmp_path / "out", finished[0]))
    assert one.read_bytes() == other.read_bytes()


def test_interrupted_by_hand_it_says_how_to_go_on(cache, tmp_path):
    command = [ROOT / "recipes" / "boolq.py", *SMALL, "--output_dir", tmp_path / "out"]
    process = start(*command, log=tmp_path / "log", W2S_HF_CACHE=str(cache))
    while process.is_alive() and not any((tmp_path / "out").glob("_stages/weak-*")):
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGINT)
    process.join(60)
    stderr = (tmp_path / "log" / "stderr").read_text()
    assert process.exitcode == 130 and stderr.endswith(STOPPED) and "Traceback" not in stderr
    # No stage is finished, but the directory has its manifest.
    another = recipe_here(*SMALL, "--learning_rate", "1", "--output_dir", tmp_path / "out", cache=cache)
    assert another.returncode == 1 and "learning_rate: 0.003 there, 1 here" in another.stderr


@pytest.fixture
def same_rows(monkeypatch):
    """Records for each interval over seeds whether the seeds have the same test rows."""
    seen, over_seeds = [], metrics.pgr_over_seeds

    def watched(runs, **options):
        seen.append(options["same_rows"])
        return over_seeds(runs, **options)

    monkeypatch.setattr(metrics, "pgr_over_seeds", watched)
    return seen


def test_a_seed_is_added_and_nothing_is_lost(cache, tmp_path, same_rows):
    first = ["--config", DEMO_CONFIG, *TINY, "--methods", "naive", "--output_dir", tmp_path / "out"]
    first += "--student_model scratch-64x2 --max_steps 1 --load_best_model_at_end false".split()
    first += "--eval_strategy no --save_strategy no".split()
    assert recipe_here(*first, cache=cache).returncode == 0
    (before,) = numbers(tmp_path / "out")["runs"]
    fewer = recipe_here(*first, "--seeds", 1, cache=cache)
    assert fewer.returncode == 1 and "results of this experiment for the seeds 0." in fewer.stderr
    process = recipe_here(*first, "--seeds", 0, 1, "--run_name", "more of it", cache=cache)
    assert process.returncode == 0, process.stderr[-3000:]
    results = numbers(tmp_path / "out")
    assert results["run_name"] == "more of it" and "Run: more of it." in (tmp_path / "out" / "report.md").read_text()
    assert results["runs"][0]["students"][0] == before["students"][0]
    assert set(check_predictions(tmp_path / "out")["seed"]) == {0, 1}
    assert "(worlds 0, 1)" in (tmp_path / "out" / "report.md").read_text(), "each seed has a world of its own"
    assert same_rows[-1] is False
    for seed in (0, 1):
        card = (tmp_path / "out" / f"students/naive-seed{seed}/README.md").read_text()
        assert f"(world {seed})" in card and f"world {1 - seed}" not in card
    table = read_results(tmp_path / "out")
    assert table[table["role"] == "student"].groupby("fingerprint")["seed"].apply(list).tolist() == [[0, 1]]
    shown = leaderboard(find_cards([str(tmp_path / "out")]))
    assert shown["n_students"].tolist() == [2] and set(shown["run_name"]) == {"more of it"}
    assert set(shown["task"]) == {"boolq (demo: generated rows)"}


@pytest.mark.distributed
@pytest.mark.slow
def test_two_ranks_run_the_recipe(cache, tmp_path):
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    process = recipe(*TINY, "--methods", "confidence", "--per_device_train_batch_size", 16, "--output_dir",
                     tmp_path / "out", cache=cache, launcher=launcher, GLOO_SOCKET_IFNAME="lo")  # fmt: skip
    assert process.returncode == 0, process.stderr[-3000:]
    assert process.stdout.count("strong ceiling") == 1
    messages = re.findall(r"^Seed 0: .*|^\d of \d: .*", process.stderr, flags=re.MULTILINE)
    assert len(messages) >= 6 and len(set(messages)) == len(messages), "only one rank prints"
    assert numbers(tmp_path / "out")["runs"][0]["weak"]["n"] == 40
    check_predictions(tmp_path / "out")


def test_four_bit_with_one_flag(cache, tmp_path):
    process = recipe_here(*TINY, "--load_in_4bit", "true", "--methods", "naive", "--output_dir", tmp_path, cache=cache)
    assert process.returncode == 0, process.stderr[-3000:]
    assert difference_to_what_was_scored(tmp_path, "naive", load_in_4bit=True) < 1e-5
    assert difference_to_what_was_scored(tmp_path, "naive") > 1e-4, "4 bit make no difference"


@pytest.mark.parametrize("use_peft", ["true", "false"])
def test_own_models_and_rows_by_relative_path(use_peft, cache, tmp_path, tokenizer, model_of, same_rows):
    (tmp_path / "rows").mkdir()
    for name in ("train", "validation"):
        passages(240, name).to_parquet(tmp_path / "rows" / f"{name}.parquet")
    for name in ("weak", "strong"):
        model_of("llama").save_pretrained(tmp_path / name)
        tokenizer.save_pretrained(tmp_path / name)
    options = (
        "--weak_model weak --student_model strong --dataset_path rows --methods naive --max_steps 2 --use_cpu true"
    )
    options += f" --use_peft {use_peft} --head_init zeros --learning_rate 0 --output_dir out --report_to none"
    process = recipe_here(*options.split(), "--seeds", 0, 1, cache=cache, cwd=tmp_path)
    assert process.returncode == 0, process.stderr[-3000:]
    assert same_rows == [True]
    run, _ = numbers(tmp_path / "out")["runs"]
    assert [entry["name"] for entry in run["baselines"]] == ["linear probe, ground truth"]
    assert run["baselines"][0]["name"] in set(check_predictions(tmp_path / "out")["role"])
    assert run["ceiling"]["optimizer_steps"] == run["students"][0]["optimizer_steps"] == 2
    student = tmp_path / "out" / "students" / "naive-seed0"
    # The code is run in another directory, as by users who download the student.
    weights = [
        p for name, p in load_student(str(student)).named_parameters() if "score" in name and "original" not in name
    ]
    assert len(weights) == 1 and not weights[0].any(), "--head_init was not read"
    assert f"library_name: {'peft' if use_peft == 'true' else 'transformers'}" in (student / "README.md").read_text()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--methods naiv", "got naiv, expected some of naive, confidence"),
        ("--loss_type mse", "got 'mse', expected one of xent"),
        ("--seeds 1 1", "different integers"),
        ("--aux_coef 1.5", "aux_coef: got 1.5, expected a share between 0 and 1"),
        ("--window_radius 0", "window_radius: got 0.0"),
        ("--max_length 0", "max_length: got 0"),
        ("--config nowhere.yaml", "nowhere.yaml"),
        ("--n_trian 5", "--n_trian"),
        ("--weak_model gpt2", "Got no --student_model"),
        ("--push_to_hub true", "Set HF_TOKEN"),
        ("--n_test 0", "--n_test: got 0, expected a positive number"),
        ("--load_in_4bit true --use_peft false", "quantized student without adapters"),
        ("--head_init ones", "invalid choice: 'ones'"),
        ("--demo true --dataset_path x --weak_model a --student_model b", "--dataset_path and the demo"),
        ("--model_name_or_path x", "expected --student_model with this value"),
        ("--lora_dropout 0.1", "Set --disable_dropout false"),
        ("--hub_token x", "Set HF_TOKEN instead"),
        ("--loss_type product", "--loss_type: got product, which is set by --methods. Use --methods"),
        ("--seed 42", "--seed: got 42, which is set by --seeds. Use --seeds"),
        ("--data_seed 1", "which is set by --seeds"),
        ("--hub_model_id me/student", "which is set by --hub_namespace"),
    ],
)
def test_bad_arguments_end_in_one_clear_line(options, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("w2s_hf.experiments.cli.get_token", lambda: None)
    with pytest.raises(SystemExit) as ended:
        parse_arguments("", DEMO_CONFIG, options.split())
    assert ended.value.code == 2
    assert message in capsys.readouterr().err
    assert not any(tmp_path.iterdir()), "something was written before the arguments were checked"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            "--dataset_path nowhere --weak_model {model} --student_model {model}",
            "--dataset_path: got 'nowhere', which does not exist in the working directory",
        ),
        ("--dataset_path {rows} --weak_model {empty} --student_model b", "without config.json"),
        ("--student_model pretraind-64x2", "its models: scratch-32x1"),
        ("--student_model pretraind-64x2", "Did you mean 'pretrained-64x2'"),
    ],
)
def test_bad_requests_end_in_one_clear_line(options, message, cache, tmp_path):
    rows, empty, model = (tmp_path / name for name in ("rows", "empty", "model"))
    for directory in (rows, empty, model):
        directory.mkdir()
    (model / "config.json").write_text("{}")
    for name in ("train", "validation"):
        passages(120, name).to_parquet(rows / f"{name}.parquet")
    demo = () if "dataset" in options else ("--config", DEMO_CONFIG)
    options = options.format(rows=rows, empty=empty, model=model).split()
    process = recipe_here(*demo, *options, "--output_dir", tmp_path / "out", cache=cache)
    assert process.returncode == 1
    assert message in process.stderr and "Traceback" not in process.stderr
    assert not (tmp_path / "out").exists()


@pytest.fixture
def no_hub(monkeypatch):
    """Simulates HF_HUB_OFFLINE=0 and HF_ENDPOINT=http://127.0.0.1:9, where no server listens."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")


def test_hub_out_of_reach_is_said(no_hub, cache, tmp_path):
    (tmp_path / "config.json").write_text("{}")
    models = ["--weak_model", tmp_path, "--student_model", tmp_path]
    process = recipe_here(*models, "--output_dir", tmp_path / "out", cache=cache)
    assert process.returncode == 1
    for advice in ("--dataset_path", "HF_HUB_OFFLINE=1", "demo", "google/boolq"):
        assert advice in process.stderr
    assert "Traceback" not in process.stderr and not (tmp_path / "out").exists()


def test_a_refused_push_loses_nothing_and_names_the_command(no_hub, finished, cache, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_sec")
    output, _, _ = finished
    push = ["--push_to_hub", "true", "--hub_namespace", "somebody"]
    process = recipe_here(*SMALL, "--output_dir", output, *push, cache=cache)
    assert process.returncode == 1
    assert process.stderr.endswith(f"\n    w2s publish {output} --hub_namespace somebody\n")
    assert (output / "students" / "naive-seed0" / "adapter_model.safetensors").exists()
    assert "hf_sec" not in process.stderr + process.stdout
    assert not any("hf_sec" in path.read_text(errors="ignore") for path in output.rglob("*") if path.is_file())


@pytest.mark.parametrize("name", ["sciq.py", "cosmos_qa.py", "amazon_polarity.py", "nlp.py"])
def test_siblings_run_on_generated_rows_of_their_own_schema(name, cache, tmp_path):
    task = ["--task", "quail"] if name == "nlp.py" else []
    process = recipe_here(*task, *TINY, "--methods", "naive", "--output_dir", tmp_path / "out", cache=cache, name=name)
    assert process.returncode == 0, process.stderr[-3000:]
    assert f"recipes/{name} {' '.join(task)}".strip() + " --config" in process.stdout
    results = numbers(tmp_path / "out")
    assert results["task"] == (task[1] if task else name.removesuffix(".py"))
    assert results["dataset"]["n_test"] == results["runs"][0]["students"][0]["n"] == 40


@pytest.mark.parametrize("task", TASKS)
def test_every_task_runs_by_name(task, cache, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("W2S_HF_CACHE", str(cache))
    options = f"--task {task} --config {DEMO_CONFIG} --n_train 64 --n_weak 32 --n_validation 16 --n_test 40"
    options += f" --methods naive --max_steps 1 --output_dir {tmp_path / 'out'}"
    # The control, early stopping and checkpoints do not depend on the task. Other tests run them.
    options += " --student_model scratch-64x2 --load_best_model_at_end false --eval_strategy no --save_strategy no"
    monkeypatch.setattr("sys.argv", ["recipes/nlp.py", *options.split()])
    runpy.run_path(str(ROOT / "recipes" / "nlp.py"), run_name="__main__")
    assert "strong ceiling" in capsys.readouterr().out
    results = numbers(tmp_path / "out")
    assert results["task"] == task and results["runs"][0]["ceiling"]["n"] == 40
    assert f"columns of {task}" in (tmp_path / "out" / "report.md").read_text()


def test_the_demo_with_one_row_a_question(cache, tmp_path, monkeypatch):
    monkeypatch.setenv("W2S_HF_CACHE", str(cache))
    options = "--task sciq --conversion coin_flip --demo_documents 1600 --n_train 480 --n_weak 32 --n_validation 16"
    options += f" --n_test 400 --max_steps 2 --methods naive --output_dir {tmp_path / 'out'}"
    monkeypatch.setattr("sys.argv", ["recipes/nlp.py", *options.split()])
    runpy.run_path(str(ROOT / "recipes" / "nlp.py"), run_name="__main__")
    results = numbers(tmp_path / "out")
    assert results["dataset"]["conversion"] == "coin_flip" and results["runs"][0]["weak"]["n"] == 400


def own_task() -> str:
    """Returns the task that the guide defines."""
    guide = (ROOT / "docs" / "guides" / "own_task.md").read_text()
    blocks = re.findall(r"```\w*\n(.*?)```", guide, flags=re.S)
    return next(block for block in blocks if block.startswith("from w2s_hf import Task\n"))


def test_the_own_task_of_the_guide_runs(cache, tmp_path, tokenizer, model_of):
    definition = own_task()
    assert len(definition.strip().splitlines()) < 14
    (tmp_path / "spam.py").write_text(definition)
    (tmp_path / "data").mkdir()
    rows = [{**row, "is_spam": int(row["is_spam"] == "spam")} for row in MESSAGES]
    Dataset.from_list([{"message": "", "is_spam": 0}, *rows]).to_csv(str(tmp_path / "data" / "messages.csv"))
    for name in ("weak", "strong"):
        model_of("llama").save_pretrained(tmp_path / name)
        tokenizer.save_pretrained(tmp_path / name)
    options = "--task spam.py --weak_model weak --student_model strong --methods naive --max_steps 2 --use_cpu true"
    options += " --output_dir out --report_to none --drop_empty true"
    process = recipe_here(*options.split(), cache=cache, cwd=tmp_path, name="nlp.py")
    assert process.returncode == 0, process.stderr[-3000:]
    results = numbers(tmp_path / "out")
    assert results["task"] == "spam" and results["dataset"]["id"] == "messages.csv"
    assert "Half of the rows are 'yes'" in (tmp_path / "out" / "report.md").read_text()


def test_the_demo_refuses_a_task_of_ones_own_before_it_pretrains(tmp_path):
    (tmp_path / "spam.py").write_text(own_task())
    process = recipe_here("--task", "spam.py", cache=tmp_path / "models", cwd=tmp_path, name="nlp.py")
    assert process.returncode == 1 and "Got the task spam, for which the demo has no rows" in process.stderr
    assert not (tmp_path / "models").exists()


def test_tasks_are_listed(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["recipes/nlp.py", "--list_tasks"])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(ROOT / "recipes" / "nlp.py"), run_name="__main__")
    assert not ended.value.code
    out = capsys.readouterr().out
    assert all(name in out for name in TASKS) and "embedded demo" not in out
    assert "nyu-mll/glue cola " in out and "cola, else nyu-mll/glue cola" not in out, "one source, two revisions"


def test_a_recipe_of_any_task_needs_one(capsys):
    with pytest.raises(SystemExit):
        parse_arguments("", DEMO_CONFIG, [], experiment=AnyTaskArguments)
    assert "Got no --task, expected the name of a task. --list_tasks prints the names" in capsys.readouterr().err


def test_help_reads_well(cache):
    process = recipe_here("--help", "all", cache=cache)
    assert process.returncode == 0
    for words in ("accelerate launch recipes/boolq.py", "--dataset_path", "--methods", "--lora_r", "--config"):
        assert words in process.stdout
    assert process.stdout.index("--dataset_path") < process.stdout.index("--learning_rate"), (
        "the experiment comes first"
    )
    assert process.stdout.index("Runs weak-to-strong generalization on BoolQ") < 100, (
        "the description comes before all options"
    )


def test_shipped_configurations_parse(cache, tmp_path):
    for name in ("demo", "single_gpu", "qwen_72b"):
        config = ROOT / "w2s_hf" / "configs" / f"{name}.yaml"
        argv = ["--config", str(config), "--output_dir", str(tmp_path), "--use_cpu", "true"]
        args, training_args, student = parse_arguments("", DEMO_CONFIG, argv)
        assert args.student_model and training_args.load_best_model_at_end
        # These options suit all tasks; a number of rows suits only one.
        assert args.demo or (args.n_train, args.n_weak, args.n_validation, args.n_test) == (None,) * 4


def test_hyphens_name_a_real_experiment_too(tmp_path):
    argv = ["--weak-model", "a", "--student-model=b", "--output_dir", str(tmp_path), "--use_cpu", "true"]
    args, _, _ = parse_arguments("", DEMO_CONFIG, argv)
    assert not args.demo and (args.weak_model, args.student_model) == ("a", "b")
