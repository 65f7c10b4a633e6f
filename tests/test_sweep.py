"""Tests sweeps: the table is the same after interruptions, failures and lost workers."""

import importlib.util
import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from dataclasses import asdict, replace
from pathlib import Path

import pandas as pd
import pytest
from helpers.cards import CARDS
from helpers.running import ROOT, recipe, recipe_here, start

from w2s_hf import Method, WeakLabels, read_results, user_code
from w2s_hf.experiments import finetuner
from w2s_hf.experiments.output_directory import Manifest
from w2s_hf.launch import CONFIGS
from w2s_hf.leaderboard import find_cards, leaderboard
from w2s_hf.results import ExperimentResult
from w2s_hf.sweep import cells
from w2s_hf.sweep.cells import Session, _row_of
from w2s_hf.sweep.cli import parse_sweep
from w2s_hf.sweep.cluster import _work
from w2s_hf.sweep.grid import Cell, SweepArguments, cells_of, rounds_of
from w2s_hf.sweep.run import run_sweep

TWO_NODES = "test_on_two_nodes_of_which_one_loses_its_worker_the_table_is_the_same"
DEMO = ROOT / "w2s_hf" / "configs" / "sweep_demo.yaml"
# Enough for models to differ; two supervisors, two students and a chain.
SMALL = "--demo_world plain --demo_documents 1600 --n_train 160 --n_weak 200 --n_validation 40 --n_test 120".split()
SMALL += "--eval_strategy no --load_best_model_at_end false --save_strategy no".split()
GRID = "--weak_models scratch-32x1 pretrained-16x2 --student_models pretrained-16x2 pretrained-32x2".split()
GRID += "--methods naive bootstrap --seeds 0".split()

METHOD = """
from w2s_hf import Method

def loss(logits, soft_labels, step):
    return (-soft_labels * logits.log_softmax(dim=-1)).sum(dim=-1).sqrt()  # a comment

MINE = Method("mine", loss=loss)
"""


def sweep(*options, cache, output):
    return recipe_here(*GRID, *SMALL, *options, "--output_dir", output, cache=cache, name="sweep.py")


def trainings(output: Path) -> Counter:
    """Returns how often all processes together started each stage. Resumed stages do not count again."""
    logs = "\n".join(path.read_text() for path in (output / "logs").glob("*.txt"))
    return Counter(re.findall(r"^(\S+-[0-9a-f]{12}): started$", logs, flags=re.MULTILINE))


def stages(output: Path) -> set[str]:
    return {path.name for path in (output / "_stages").iterdir() if path.is_dir()}


def predictions(output: Path) -> dict[str, str]:
    """Returns a hash of the predictions of each stage."""
    return {name: WeakLabels.load(output / "_stages" / name / "predictions").fingerprint for name in stages(output)}


def check_same(output: Path, expected: Path) -> None:
    assert (output / "sweep.csv").read_text() == (expected / "sweep.csv").read_text()
    assert predictions(output) == predictions(expected)


@pytest.fixture(scope="module")
def swept(cache, tmp_path_factory):
    output, loaded, load_base = tmp_path_factory.mktemp("sweep") / "out", [], finetuner.load_base

    def watched(model, *args):
        loaded.append(model.name if model.config.use_peft else "all weights")
        return load_base(model, *args)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(finetuner, "load_base", watched)
        process = sweep(cache=cache, output=output)
    assert process.returncode == 0, process.stderr[-3000:]
    return output, process, loaded


def test_every_cell_is_in_the_table_and_no_stage_was_trained_twice(swept):
    output, process, _ = swept
    table = pd.read_parquet(output / "sweep.parquet")
    assert set(table["status"]) == {"done"}
    methods = table.groupby(["weak_model", "student_model"])["method"].apply(list)
    assert methods.tolist() == [["naive"], ["naive"], ["naive"], ["naive", "bootstrap"]]
    assert pd.read_csv(output / "sweep.csv")["accuracy"].tolist() == table["accuracy"].tolist()
    said = predictions(output)
    assert len(set(said.values())) == len(said), (
        "all models have different predictions, so a table of other models would differ"
    )
    # A chain of two links, the last of which is the student, and the student that is trained without the chain.
    begun = trainings(output)
    of_sweep = {name: count for name, count in begun.items() if not name.startswith(("scratch-", "pretrained-"))}
    assert set(of_sweep) == stages(output) and set(of_sweep.values()) == {1}
    kinds = Counter(name.rpartition("-")[0] for name in of_sweep)
    assert kinds == {
        "weak": 2, "weak-link-labels": 1, "ceiling": 2, "student-naive": 4, "link": 1, "student-bootstrap": 1,
        "student-direct": 1,
    }  # fmt: skip
    assert "[5/5] boolq" in process.stdout and "it/s" not in process.stderr
    assert "3 cells of the grid are left out: bootstrap, and --ladder has no model between" in process.stderr
    report = (output / "report.html").read_text()
    assert "pretrained-32x2" in report and "bootstrap" in report
    assert "<title>Weak-to-strong generalization: boolq (demo: generated rows)</title>" in report
    assert set(table["task"]) == {"boolq"} and set(table["preset"]) == {"demo"}


def test_a_directory_has_one_sweep(swept, cache, tmp_path):
    output, before = swept[0], (swept[0] / "sweep.csv").read_text()
    for options, words in {
        ("--learning_rate", "1"): "classification, learning_rate: 0.003 there, 1 here",
        ("--methods", "naive"): "which has 1 finished cells that the grid does not have",
        (
            "--methods",
            "naive",
            "--resume",
            "false",
            "--n_train",
            "100",
        ): "classification, n_train: 160 there, 100 here",
    }.items():
        refused = sweep(*options, cache=cache, output=output)
        assert refused.returncode == 1 and words in refused.stderr, refused.stderr[-2000:]
        assert "another --output_dir" in refused.stderr and "--overwrite_output_dir true" in refused.stderr
    experiment = recipe_here(*SMALL, "--output_dir", output, cache=cache)
    assert experiment.returncode == 1 and "which has a sweep" in experiment.stderr
    Manifest("experiment", "boolq", {}).write(tmp_path)
    (tmp_path / "_stages").mkdir()
    refused = sweep("--resume", "false", cache=cache, output=tmp_path)
    assert refused.returncode == 1 and "which has the experiment 'boolq'" in refused.stderr
    assert (tmp_path / "_stages").is_dir() and (output / "sweep.csv").read_text() == before


def test_cells_are_read_as_results_and_on_a_leaderboard(swept):
    table, cells = read_results(swept[0]), pd.read_parquet(swept[0] / "sweep.parquet")
    students = table[table["role"] == "student"]
    assert sorted(students["fingerprint"]) == sorted(cells["fingerprint"]) and cells["fingerprint"].nunique() == 5
    assert sorted(students["accuracy"]) == sorted(cells["accuracy"])
    board = leaderboard(find_cards([str(swept[0])]))
    assert sorted(board["fingerprint"]) == sorted(cells["fingerprint"])
    assert set(board["task"]) == {"boolq (demo: generated rows)"}


def test_cells_of_one_base_share_it(swept):
    loaded = [name for name in swept[2] if name != "all weights"]
    # Each base has a ceiling and a student of each supervisor. The chain then needs both sizes again.
    assert loaded[:2] == ["demo/pretrained-16x2", "demo/pretrained-32x2"]
    assert Counter(loaded) == {"demo/pretrained-16x2": 2, "demo/pretrained-32x2": 2}


def test_numbers_are_those_of_the_recipe(swept, cache, tmp_path):
    shutil.copytree(swept[0] / "_stages", tmp_path / "_stages")
    options = "--methods naive bootstrap --student_model pretrained-32x2 --config".split()
    options += [ROOT / "w2s_hf" / "configs" / "demo_ladder.yaml", "--output_dir", tmp_path]
    process = recipe_here(*SMALL, *options, cache=cache)
    assert process.returncode == 0, process.stderr[-3000:]
    assert "Nothing was trained" in process.stderr
    students = json.loads((tmp_path / "results.json").read_text())["runs"][0]["students"]
    table = pd.read_parquet(swept[0] / "sweep.parquet").set_index(["weak_model", "student_model", "method"])
    for student in students:
        row = table.loc[("scratch-32x1", "pretrained-32x2", student["method"])]
        assert row["accuracy"] == student["accuracy"] and row["agreement"] == student["agreement"]["overall"]
        assert row["fingerprint"] == student["fingerprint"], (
            "a cell and a run of the recipe are seeds of one experiment"
        )


def test_killed_and_started_again_it_ends_with_the_same_table(swept, cache, tmp_path):
    output = tmp_path / "out"
    command = [ROOT / "recipes" / "sweep.py", *GRID, *SMALL, "--output_dir", output]
    process = start(*command, log=tmp_path / "log", W2S_HF_CACHE=str(cache))
    deadline = time.monotonic() + 200
    while len(list(output.glob("_stages/student-*[0-9a-f]"))) < 2 and time.monotonic() < deadline:
        time.sleep(0.005)
    process.kill()
    process.join()
    assert process.exitcode == -signal.SIGKILL, "the sweep was stopped before its end"
    again = sweep(cache=cache, output=output)
    assert again.returncode == 0, again.stderr[-3000:]
    check_same(output, swept[0])
    assert set(trainings(output).values()) == {1}, "finished stages are not trained again"


def test_a_failed_cell_is_recorded_and_the_rest_goes_on(swept, cache, tmp_path):
    shutil.copytree(swept[0] / "_stages", tmp_path / "out" / "_stages")
    options = ["--student_models", "pretrained-9x9", "pretrained-16x2", "--methods", "naive"]
    process = sweep(*options, cache=cache, output=tmp_path / "out")
    assert process.returncode == 1 and "1 cells failed" in process.stderr
    table = pd.read_parquet(tmp_path / "out" / "sweep.parquet")
    assert table["status"].tolist() == ["failed", "done", "done"]
    assert (
        "got 'pretrained-9x9' in the demo, expected one of its models" in table["error"][0]
        and table["error"].isna()[1]
    )
    assert "pretrained-9x9" in (tmp_path / "out" / "report.html").read_text()
    record = json.loads(next((tmp_path / "out" / "cells").glob("*9x9*.json")).read_text())
    assert "Traceback" in record["traceback"]
    assert not trainings(tmp_path / "out"), "all other cells were finished"


def test_without_resume_everything_is_trained_again(swept, cache, tmp_path):
    shutil.copytree(swept[0] / "_stages", tmp_path / "out" / "_stages")
    options = ["--resume", "false", "--student_models", "pretrained-16x2", "--methods", "naive"]
    process = sweep(*options, "--weak_models", "scratch-32x1", cache=cache, output=tmp_path / "out")
    assert process.returncode == 0, process.stderr[-3000:]
    assert {name.rpartition("-")[0] for name in trainings(tmp_path / "out")} == {"weak", "ceiling", "student-naive"}
    assert len(stages(tmp_path / "out")) == 3


# Two machines of one worker each, until standard input is closed.
CLUSTER = """
import sys
from ray.cluster_utils import Cluster
cluster = Cluster()
for _ in range(2):
    cluster.add_node(num_cpus=1, include_dashboard=False)
print(cluster.address, flush=True)
sys.stdin.read()
cluster.shutdown()
"""


@pytest.fixture(scope="module", autouse=True)
def cluster(request):
    """The cluster starts in ten seconds, while other tests run."""
    wanted = [item for item in request.session.items if item.name == TWO_NODES]
    if not wanted or importlib.util.find_spec("ray") is None:
        yield None
        return
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL, "text": True}
    with subprocess.Popen([sys.executable, "-c", CLUSTER], **pipes) as process:
        yield process.stdout


@pytest.mark.distributed
@pytest.mark.slow
def test_on_two_nodes_of_which_one_loses_its_worker_the_table_is_the_same(cluster, swept, cache, tmp_path):
    """Starts the sweep from a recipe in a separate process, as users do."""
    pytest.importorskip("ray")
    output, killed = tmp_path / "out", []

    def kill_a_worker() -> None:
        deadline = time.monotonic() + 200
        while time.monotonic() < deadline:
            for log in output.glob("logs/*.txt"):
                if "student-" in log.read_text():
                    killed.append(int(log.stem.rpartition("-")[2]))
                    os.kill(killed[0], signal.SIGKILL)
                    return
            time.sleep(0.02)

    killer = threading.Thread(target=kill_a_worker, daemon=True)
    killer.start()
    (tmp_path / "mine.py").write_text(METHOD)
    few = "--weak_models scratch-32x1 --methods naive mine.py --engine ray --ray_address".split()
    few += [cluster.readline().strip(), "--output_dir", output]
    process = recipe(*GRID, *SMALL, *few, cache=cache, name="sweep.py", cwd=tmp_path)
    assert process.returncode == 0, process.stderr[-3000:]
    assert killed and len(list(output.glob("logs/*.txt"))) > 2, "both nodes worked, and one worker twice"
    table, expected = (pd.read_parquet(path / "sweep.parquet") for path in (output, swept[0]))
    assert table["method"].tolist() == ["naive", "mine"] * 2 and set(table["status"]) == {"done"}
    expected = expected[(expected["weak_model"] == "scratch-32x1") & (expected["method"] == "naive")]
    table = table[table["method"] == "naive"].reset_index(drop=True)
    pd.testing.assert_frame_equal(table, expected.reset_index(drop=True), check_exact=True)
    said, own = predictions(swept[0]), {name for name in stages(output) if name.startswith("student-mine-")}
    assert all(said[name] == hashed for name, hashed in predictions(output).items() if name not in own)
    of_sweep = {name: count for name, count in trainings(output).items() if name in {*said, *own}}
    assert set(of_sweep) == stages(output) and set(of_sweep.values()) == {1} and len(own) == 2


# ---- Without training ----


def test_the_grid_leaves_out_what_makes_no_sense():
    args = SweepArguments(
        tasks=["boolq", "chess_puzzles"],
        weak_models=["a", "b"],
        student_models=["b", "c"],
        methods=["naive", "confidence", "bootstrap"],
        seeds=[0],
    )
    cells = cells_of(args, {"classification": ["b", "c"], "chess": ["b", "c"]})
    found = {(cell.task, cell.weak_model, cell.student_model, cell.method) for cell in cells}
    assert ("boolq", "a", "b", "bootstrap") not in found, "a chain of one"
    assert ("boolq", "a", "c", "bootstrap") in found
    assert ("chess_puzzles", "a", "c", "confidence") not in found
    assert ("boolq", "b", "b", "naive") in found
    reverse = SweepArguments(tasks=["boolq"], weak_models=["c"], student_models=["b", "c"], methods=["naive"])
    assert [cell.student_model for cell in cells_of(reverse, {"classification": []})] == ["c"]


def test_jobs_come_in_the_order_of_what_they_need():
    cells = [
        Cell("boolq", weak, student, method, seed)
        for seed in (0, 1)
        for weak in ("a", "b")
        for student in ("c", "d")
        for method in ("bootstrap", "naive")
    ]
    supervisors, students, chains = rounds_of(cells)
    assert [(job.cells[0].weak_model, job.cells[0].seed) for job in supervisors] == [
        ("a", 0),
        ("b", 0),
        ("a", 1),
        ("b", 1),
    ]
    assert all(job.only_supervisors for job in supervisors)
    assert [[job.cells[0].student_model for job in jobs] for jobs in (students, chains)] == [["c", "c", "d", "d"]] * 2
    assert {cell.method for job in chains for cell in job.cells} == {"bootstrap"}
    assert sorted(map(str, (cell for job in students + chains for cell in job.cells))) == sorted(map(str, cells))


def test_cells_with_names_in_other_directories_have_files_of_their_own():
    first, second = (Cell("boolq", f"{place}/gpt2", "s", "naive", 0) for place in ("mine", "yours"))
    assert first.name != second.name and "/" not in first.name


@pytest.fixture
def head(tmp_path):
    (tmp_path / "options.yaml").write_text("n_train: 3\n")
    return Session(str(tmp_path), ["--n_test", "9"], {"classification": str(tmp_path / "options.yaml")}, run_id="now")


def test_the_head_knows_the_records_of_its_workers(head, tmp_path, monkeypatch):
    (tmp_path / "options.yaml").write_text("n_train: 4\n")  # the key is computed once, on the head
    worker, cell = Session(**json.loads(json.dumps(head.for_others()))), Cell("boolq", "weak", "student", "naive", 0)
    assert worker == head
    worker.write(cell, worker._record(cell, "done", {}))
    monkeypatch.setattr(cells, "code_versions", lambda: pytest.fail("a key is computed again"))
    assert head.read(cell)["status"] == "done"


def session_of(args, head) -> Session:
    """Returns a session in another process, which has not run the file of the method yet."""
    user_code._FIRST.clear()
    return replace(head, key="", method_codes={}, method_files=args.method_files)


def test_a_method_in_a_file_has_its_name_in_cells_and_its_code_in_keys(head, tmp_path, monkeypatch):
    (tmp_path / "mine.py").write_text(METHOD)
    monkeypatch.chdir(tmp_path)
    args = SweepArguments(["boolq"], ["weak"], ["student"], methods=["naive", "mine.py:MINE"])
    assert args.method_files == {"mine": f"{tmp_path / 'mine.py'}:MINE"}
    naive, mine = cells_of(args, {"classification": []})
    assert (naive.method, mine.method) == ("naive", "mine")
    session = session_of(args, head)
    for cell in (naive, mine):
        session.write(cell, session._record(cell, "done", {}))
    assert session.table([naive, mine])["method"].tolist() == ["naive", "mine"]
    for text, is_same in ((METHOD.replace("a comment", "another"), True), (METHOD.replace("sqrt", "square"), False)):
        (tmp_path / "mine.py").write_text(text)
        other = session_of(args, head)
        assert (other.read(mine) is not None) == is_same and other.read(naive) is not None


def test_a_worker_finds_the_method_from_another_directory_and_refuses_other_code(head, tmp_path, monkeypatch):
    (tmp_path / "mine.py").write_text(METHOD)
    monkeypatch.chdir(tmp_path)
    args = SweepArguments(["boolq"], ["weak"], ["student"], methods=["mine.py"])
    session = session_of(args, head)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    user_code._FIRST.clear()
    worker, cell = Session(**json.loads(json.dumps(session.for_others()))), Cell("boolq", "weak", "student", "mine", 0)
    options = []
    monkeypatch.setattr(cells, "parse_arguments", lambda *arguments, **_: options.extend(arguments[2]) or stop())
    stop = lambda: (_ for _ in ()).throw(KeyboardInterrupt)  # noqa: E731
    with pytest.raises(KeyboardInterrupt):
        worker.experiment(cell)
    assert options[options.index("--methods") + 1] == str(tmp_path / "mine.py")
    (tmp_path / "mine.py").write_text(METHOD.replace("sqrt", "square"))
    user_code._FIRST.clear()
    with pytest.raises(RuntimeError, match=f"has other code in {tmp_path / 'mine.py'} than the head node. Start"):
        worker.experiment(cell)


def test_a_method_of_a_sweep_is_in_a_file():
    with pytest.raises(TypeError, match="methods: got a Method, expected names or files"):
        SweepArguments(["boolq"], ["weak"], ["student"], methods=[Method("mine")])


def test_a_sweep_with_a_method_in_a_file(swept, cache, tmp_path):
    shutil.copytree(swept[0] / "_stages", tmp_path / "out" / "_stages")
    (tmp_path / "mine.py").write_text(METHOD)
    few = "--weak_models scratch-32x1 --student_models pretrained-16x2 --methods naive mine.py".split()
    process = recipe_here(*GRID, *SMALL, *few, "--output_dir", "out", cache=cache, name="sweep.py", cwd=tmp_path)
    assert process.returncode == 0, process.stderr[-3000:]
    assert {name.rpartition("-")[0] for name in trainings(tmp_path / "out")} == {"student-mine"}
    assert pd.read_parquet(tmp_path / "out" / "sweep.parquet")["method"].tolist() == ["naive", "mine"]
    report = (tmp_path / "out" / "report.html").read_text()
    assert "mine" in report and "mine.py" not in report
    assert "> pretrained-16x2, mine, seed 0: accuracy" in process.stdout


@pytest.mark.parametrize("accelerate_config", [None, "ddp.yaml"])
def test_a_worker_with_other_code_runs_nothing(accelerate_config, head, tmp_path, monkeypatch):
    job = {"cells": [asdict(Cell("boolq", "weak", "student", "naive", 0))], "only_supervisors": False}
    monkeypatch.setattr(cells, "code_versions", lambda: head.code | {"w2s_hf": "9.9"})
    message = f"runs other code than the head node: w2s_hf 9.9 instead of {head.code['w2s_hf']}. Install"
    with pytest.raises(RuntimeError, match=re.escape(message)):
        _work(job, head.for_others(), {}, accelerate_config)
    assert [path.name for path in tmp_path.iterdir()] == ["options.yaml"]


def test_a_failure_replaces_no_finished_cell_of_another_key(head):
    cell, lost = Cell("boolq", "weak", "student", "naive", 0), RuntimeError("lost")
    done = head._record(cell, "done", {})
    head.write(cell, done)
    other = Session(head.output_dir, ["--n_test", "8"], head.configs, run_id="now")
    other.write(cell, other.failure(cell, lost))
    assert head.read(cell) == done and other.read(cell)["status"] == "failed"
    assert other.table([cell])["error"].tolist() == ["RuntimeError: lost"]
    other.write(cell, other._record(cell, "done", {}))
    assert head.read(cell) is None and other.read(cell)["status"] == "done"
    other.write(cell, other.failure(cell, lost))
    assert other.read(cell)["status"] == "failed", "the last record of a key counts"
    assert len(list((Path(head.output_dir) / "cells").iterdir())) == 1


def test_chance_is_missing_where_there_is_no_guess(tmp_path):
    (run,) = ExperimentResult.read(CARDS / "chess-demo" / "results.json").runs
    run.students = run.students[:1]
    session, cell = Session(str(tmp_path), [], {}), Cell("boolq", "weak", "student", "naive", 0)
    chances = []
    for baselines in (run.baselines, []):
        row = _row_of(replace(run, baselines=baselines), None, 1, 2)
        session.write(cell, session._record(cell, "done", row))
        chances += session.table([cell])["chance"].tolist()
    assert 0 < chances[0] < 1 and math.isnan(chances[1])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--weak_model", "gpt2"], "--weak_models"),
        (["--methods", "naive", "naive"], "got duplicate names: naive naive"),
        (["--engine", "slurm"], "invalid choice"),
        (["--accelerate_config", "ddp.yaml"], "or launch the sweep with `w2s sweep --accelerate_config ddp"),
        (["--methods", "naive", "confidense"], "got confidense"),
        (["--weak-model=gpt2"], "--weak_models"),
        (["--push_to_hub", "true"], "pushes nothing"),
    ],
)
def test_wrong_command_lines_say_what_to_do(options, message, capsys):
    with pytest.raises(SystemExit):
        parse_sweep("", DEMO, options)
    assert message in capsys.readouterr().err


def test_a_file_with_a_task_of_another_setting_is_refused(tmp_path):
    path, output = tmp_path / "my_pairs.py", tmp_path / "output"
    path.write_text("from w2s_hf.tasks import PreferenceTask\nMINE = PreferenceTask('mine', 'me/pairs')\n")
    args = SweepArguments([str(path)], ["scratch-32x1"], ["pretrained-32x2"], output_dir=str(output))
    with pytest.raises(ValueError, match="a PreferenceTask, expected text classification"):
        run_sweep(args, ["--use_cpu", "true"], CONFIGS)
    assert not output.exists()


def test_options_of_cells_in_the_file_of_the_grid_are_refused(tmp_path, capsys):
    (tmp_path / "grid.yaml").write_text("weak_models: [a]\nstudent_models: [b]\nn_train: 100\n")
    with pytest.raises(SystemExit):
        parse_sweep("", DEMO, ["--config", str(tmp_path / "grid.yaml")])
    assert "got 'n_train', which is not an option of a grid" in capsys.readouterr().err


def test_options_of_no_recipe_are_refused_before_anything_runs_or_is_removed(cache, tmp_path):
    (tmp_path / "_stages").mkdir()
    process = sweep("--resume", "false", "--lerning_rate", "1", cache=cache, output=tmp_path)
    assert process.returncode == 2 and "--lerning_rate" in process.stderr
    assert (tmp_path / "_stages").is_dir()


def test_the_ladder_may_be_named_on_the_command_line(swept, cache, tmp_path):
    """All cells have rows that fit all models of the grid and of the ladder."""
    shutil.copytree(swept[0] / "_stages", tmp_path / "_stages")
    options = ["--ladder", "pretrained-16x2", "pretrained-32x2", "--weak_models", "scratch-32x1"]
    process = sweep(*options, "--student_models", "pretrained-32x2", cache=cache, output=tmp_path)
    assert process.returncode == 0, process.stderr[-3000:]
    assert pd.read_parquet(tmp_path / "sweep.parquet")["method"].tolist() == ["naive", "bootstrap"]
    record = json.loads(next((tmp_path / "cells").glob("*bootstrap*.json")).read_text())
    for student in record["entry"]["students"]:
        assert (tmp_path / student["output"] / "adapter_config.json").is_file()
        assert (tmp_path / student["links"][0]["output"] / "adapter_config.json").is_file()


def test_a_cell_of_which_nothing_is_recorded_has_failed(swept, cache, tmp_path):
    shutil.copytree(swept[0] / "_stages", tmp_path / "_stages")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("w2s_hf.sweep.run.run_here", lambda *arguments: None)
        process = sweep(cache=cache, output=tmp_path)
    assert process.returncode == 1 and "5 cells failed" in process.stderr


def test_real_models_need_a_configuration_of_the_cells(cache, tmp_path):
    models = ["--weak_models", "gpt2", "--student_models", "gpt2-xl"]
    process = sweep(*models, cache=cache, output=tmp_path)
    assert process.returncode == 1 and "--cell_config single_gpu." in process.stderr


def test_one_configuration_is_not_for_two_settings(cache, tmp_path):
    options = ["--tasks", "boolq", "anthropic_hh", "--cell_config", ROOT / "w2s_hf" / "configs" / "demo.yaml"]
    process = sweep(*options, cache=cache, output=tmp_path)
    assert process.returncode == 1 and "tasks of classification and reward" in process.stderr


@pytest.mark.slow
def test_a_job_may_be_launched_by_accelerate(swept, cache, tmp_path, monkeypatch):
    """Runs a job as a worker of the cluster does if a cell has several GPUs."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    (tmp_path / "cpu.yaml").write_text("use_cpu: true\nnum_processes: 1\ndistributed_type: 'NO'\n")
    session = Session(str(tmp_path), [*SMALL], {"classification": str(swept[0] / "configs" / "classification.yaml")})
    cell = Cell("boolq", "scratch-32x1", "pretrained-16x2", "naive", 0)
    job = {"cells": [asdict(cell)], "only_supervisors": True}
    _work(job, session.for_others(), {"W2S_HF_CACHE": str(cache)}, str(tmp_path / "cpu.yaml"))
    assert [name.rpartition("-")[0] for name in stages(tmp_path)] == ["weak"]
    assert stages(tmp_path) <= stages(swept[0]), "the same stage as here"


def test_no_cluster_is_said_so(cache, tmp_path):
    pytest.importorskip("ray")
    process = sweep("--engine", "ray", "--ray_address", "127.0.0.1:1", cache=cache, output=tmp_path)
    assert (
        process.returncode == 1 and "no cluster was found" in process.stderr and "ray start --head" in process.stderr
    )
