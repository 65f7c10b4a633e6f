"""Tests of `--transfer_tasks`: the choice of tasks and rows, the scores on them, and the output of a run."""

import json
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from datasets import Dataset, DatasetDict
from helpers.models import make_model, make_tokenizer
from helpers.preferences import explicit_text, pairs_of

from w2s_hf import StudentConfig, Task, WeakLabels, WeakToStrongConfig
from w2s_hf.demo.worlds import DemoWorld
from w2s_hf.experiments import transfer
from w2s_hf.experiments.analysis_context import AnalysisContext
from w2s_hf.experiments.config import ChessArguments, ClassificationArguments, GenerationArguments, RewardArguments
from w2s_hf.experiments.console import Progress
from w2s_hf.experiments.experiment import run_experiment
from w2s_hf.experiments.finetuner import Finetuned
from w2s_hf.experiments.report import print_table
from w2s_hf.experiments.settings.classification import CLASSIFICATION
from w2s_hf.experiments.settings.reward import REWARD
from w2s_hf.experiments.transfer import find_transfer_tasks, load_transfer_rows, summarise_transfer, with_transfer
from w2s_hf.modeling.spec import ModelSpec
from w2s_hf.results import ExperimentResult, ModelScore, SeedResult
from w2s_hf.sweep.cells import Session
from w2s_hf.sweep.grid import Cell
from w2s_hf.tasks import PREFERENCE_TASKS, TASKS, PreferenceTask, load_pairs, load_task
from w2s_hf.tasks.preferences import PairLoader
from w2s_hf.tasks.splits import TransferRows
from w2s_hf.tasks.texts import TextLoader

# ---- Tasks ----


@pytest.mark.parametrize(
    ("task", "names"),
    [
        ("boolq", "ethics_utilitarianism ethics_virtue paws wic"),
        ("sst2", "amazon_polarity twitter_sentiment"),
        ("ethics_justice", "ethics_deontology"),
        (
            "sciq",
            "cosmos_qa dream hellaswag mc_taco multirc openbookqa piqa quail quartz sciq_with_support social_i_qa",
        ),
        ("cola", ""),
    ],
)
def test_tasks_with_the_same_class_names_can_be_used(task, names):
    assert [other.name for other in find_transfer_tasks(TASKS[task], names.split())] == names.split()
    others = set(TASKS) - {task, *names.split()}
    for name in others:
        with pytest.raises(ValueError, match=f"got {name} .*, expected the same form of answers as {task}"):
            find_transfer_tasks(TASKS[task], [name])


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["sst2"], r"got sst2 \(the classes negative and positive\)"),
        (["anthropic_hh"], r"got anthropic_hh \(PreferenceTask\)"),
        (["pawz"], "got the unknown task 'pawz'.* Did you mean 'paws'"),
        (["nowhere.py"], "got 'nowhere.py', expected an existing file"),
        (["boolq"], "got a second task with the name boolq"),
        (["paws", "paws"], "got a second task with the name paws"),
    ],
    ids=["classes", "setting", "unknown", "no file", "the task of the run", "twice"],
)
def test_other_tasks_are_refused_and_the_error_lists_the_tasks_that_can_be_used(names, message):
    with pytest.raises(ValueError, match=message) as refused:
        find_transfer_tasks(TASKS["boolq"], names)
    assert str(refused.value).startswith("--transfer_tasks: ")
    if "second" not in message:
        assert "Name one of ethics_virtue, ethics_utilitarianism, paws, wic, or a Python file" in str(refused.value)


def test_swapped_class_names_are_other_answers():
    swapped = replace(TASKS["paws"], class_names=("yes", "no"))
    assert not transfer._same_answers(TASKS["boolq"], swapped)


def test_pairs_transfer_to_other_pairs(tmp_path):
    (tmp_path / "mine.py").write_text(
        "from w2s_hf.tasks import PreferenceTask\nMINE = PreferenceTask('mine', 'a.csv')\n"
    )
    hh = PREFERENCE_TASKS["anthropic_hh"]
    assert [task.name for task in find_transfer_tasks(hh, [str(tmp_path / "mine.py")])] == ["mine"]
    with pytest.raises(ValueError, match="Name a Python file with a task of pairs of responses."):
        find_transfer_tasks(hh, ["boolq"])


def test_completions_and_sweeps_refuse_the_option(tmp_path):
    for arguments in (GenerationArguments, ChessArguments):
        with pytest.raises(ValueError, match="--transfer_tasks: got boolq for a task with completions"):
            arguments(transfer_tasks=["boolq"])
    (tmp_path / "config.yaml").write_text("demo: true\ntransfer_tasks: [paws]\n")
    session = Session(str(tmp_path), [], {"classification": str(tmp_path / "config.yaml")})
    with pytest.raises(ValueError, match="Got --transfer_tasks in --cell_config"):
        session.experiment(Cell("boolq", "scratch-32x1", "pretrained-64x2", "naive", 0))


# ---- Rows ----


def questions(numbers, support: str = "w1") -> Dataset:
    """Returns rows of SciQ. Rows with the same number have the same question."""
    wrong = {f"distractor{n}": f"w{n}" for n in (1, 2, 3)}
    return Dataset.from_list(
        [
            {"question": f"w{n} w{n % 7} {n}", "correct_answer": "w4", "support": f"{support} {n}", **wrong}
            for n in numbers
        ]
    )


SIZES = {"n_train": 20, "n_weak": 20, "n_validation": 8}


def test_test_rows_with_the_question_of_a_training_row_are_left_out(caplog):
    raw = DatasetDict(train=questions(range(40)), test=questions(range(40, 60)))
    splits = load_task("sciq", raw=raw, n_test=10, **SIZES)
    assert splits.training_keys
    # The texts differ by the support. 24 of the 40 training questions are in the halves and validation parts.
    other = DatasetDict(test=questions(range(30, 70), "w2"))
    rows = TextLoader(TASKS["sciq_with_support"], "pairs").load_test(splits, raw=other)

    def questions_of(part):
        return {text.split("Question: ")[1].split("\n")[0] for text in part["text"]}

    trained = set().union(*(questions_of(part) for name, part in splits.parts.items() if name != "test"))
    offered = questions_of({"text": [f"Question: {question}\n" for question in other["test"]["question"]]})
    assert trained & offered and not trained & questions_of(rows.test)
    assert questions_of(rows.test) == offered - trained, "unused training rows and test rows of the run remain"
    assert rows.n_shared == 2 * len(trained & offered), "a right and a wrong answer per question"
    assert np.mean(rows.test["ground_truth"]) == 0.5
    message = f"sciq_with_support: {rows.n_shared} of 80 test texts share their text or a group with training texts"
    assert message in caplog.text
    few = TextLoader(TASKS["sciq_with_support"], "pairs").load_test(splits, raw=other, n_test=8)
    assert len(few.test) == 8 and questions_of(few.test) <= questions_of(rows.test)


def test_without_shared_rows_a_run_on_the_task_has_the_same_test_rows():
    splits = load_task("sciq", raw=DatasetDict(train=questions(range(40)), test=questions(range(40, 60))), **SIZES)
    raw = DatasetDict(train=questions(range(100, 140)), test=questions(range(140, 160)))
    own = load_task("sciq_with_support", raw=raw, n_test=12, seed=3, **SIZES).test
    rows = TextLoader(TASKS["sciq_with_support"], "pairs").load_test(splits, raw=raw, n_test=12, seed=3)
    assert rows.test.remove_columns("group").to_list() == own.remove_columns("group").to_list()
    assert rows.n_shared == 0 and len(own) == 12
    # More rows than there are: all rows.
    assert len(TextLoader(TASKS["sciq_with_support"], "pairs").load_test(splits, raw=raw, n_test=99).test) == 40


def test_a_text_of_a_training_row_is_left_out_if_its_columns_have_other_names():
    rows = Dataset.from_list([{"text": f"w{n}", "y": n % 2} for n in range(60)])
    one = Task("one", "one.csv", "{text}", label="y")
    splits = load_task(one, raw=DatasetDict(train=rows.select(range(40)), test=rows.select(range(40, 60))))
    other = Task("other", "other.csv", "{words}", label="y")
    raw = DatasetDict(test=rows.rename_column("text", "words"))
    shared = TextLoader(other, "pairs").load_test(splits, raw=raw)
    assert shared.n_shared == 40 and sorted(shared.test["text"]) == [f"w{n}" for n in range(40, 60)]


def test_if_all_rows_are_shared_the_task_is_refused():
    raw = DatasetDict(train=questions(range(24)), test=questions(range(40, 60)))
    splits = load_task("sciq", raw=raw, **SIZES)
    n_trained = {text.split("\n")[0] for name, part in splits.parts.items() if name != "test" for text in part["text"]}
    assert len(n_trained) == 24
    with pytest.raises(ValueError, match="sciq_with_support: got 0 test rows.* 20 more test rows share"):
        other = DatasetDict(test=questions(range(10), "w2"))
        TextLoader(TASKS["sciq_with_support"], "pairs").load_test(splits, raw=other)


def test_pairs_of_another_task_are_apart_from_the_training_pairs():
    hh, mine = PREFERENCE_TASKS["anthropic_hh"], PreferenceTask("mine", "mine.jsonl", test_split=None)
    raw = DatasetDict(train=pairs_of(explicit_text, 60), test=pairs_of(explicit_text, 20, 60))
    splits = load_pairs(hh, raw=raw, n_test=10)
    trained = {prompt for name, part in splits.parts.items() if name != "test" for prompt in part["prompt"]}
    # Without a test split, a fifth is held out: about 40 of 200 pairs, a few of which have a training prompt.
    rows = PairLoader(mine, (), None).load_test(splits, raw=DatasetDict(train=pairs_of(explicit_text, 200)))
    assert not trained & set(rows.test["prompt"]) and rows.n_shared > 0
    assert len(rows.test) + rows.n_shared == pytest.approx(40, abs=4)


def test_the_demo_generates_rows_of_the_same_world(world, tmp_path):
    args = ClassificationArguments(demo=True, n_train=40, n_weak=40, n_validation=16, n_test=30)
    training_args = WeakToStrongConfig(output_dir=str(tmp_path), use_cpu=True, bf16=False, report_to="none")
    splits = CLASSIFICATION.load_demo_rows(TASKS["boolq"], args, training_args, world)
    others = [TASKS["paws"], TASKS["mc_taco"]]
    rows = load_transfer_rows(others, CLASSIFICATION, args, training_args, [], world, splits)
    for task in others:
        own = CLASSIFICATION.load_demo_rows(task, args, training_args, world).test
        assert rows[task.name].test["text"][:] == own["text"][:] and len(own) == 30
        assert rows[task.name].source == {"id": "w2s_hf demo", "revision": "world 0"}
    mine = replace(TASKS["paws"], name="mine")
    with pytest.raises(ValueError, match="--transfer_tasks mine: Got the task mine, for which the demo has no rows"):
        load_transfer_rows([mine], CLASSIFICATION, args, training_args, [], world, splits)


def test_the_demo_of_pairs_is_refused():
    args = RewardArguments(demo=True)
    with pytest.raises(ValueError, match="the same pairs for every task"):
        REWARD.load_test_rows(PREFERENCE_TASKS["anthropic_hh"], args, None, [], DemoWorld(seed=0), None)


# ---- Scores ----


def answers(*correct: int) -> WeakLabels:
    """Returns predictions of four rows of the classes 0, 1, 0, 1, which are correct where `correct` is 1."""
    truth = np.array([0, 1, 0, 1])
    predicted = np.where(np.array(correct) == 1, truth, 1 - truth)
    return WeakLabels(list("abcd"), np.eye(2)[predicted] * 0.8 + 0.1, {"stage": "x"})


def context_of(seed: int, predictions: dict[str, WeakLabels], n_supervisors: int = 1) -> AnalysisContext:
    """Returns a finished seed whose models predict the rows of any other task by role."""
    models = {role: ModelSpec(role, role, "0" * 8, None) for role in predictions}
    trained = {role: Finetuned(spec, role, None) for role, spec in models.items()}
    finetuner = SimpleNamespace(
        cache=SimpleNamespace(progress=Progress()),
        setting=CLASSIFICATION,
        predict=lambda name, model, rows, predict, title: predictions[model.spec.name],
    )
    empty = SimpleNamespace(map=lambda function: None)
    score = ModelScore(model="m", accuracy=0.5, n=4)
    return AnalysisContext(
        args=ClassificationArguments(methods=["naive"], n_supervisors=n_supervisors),
        models=SimpleNamespace(weak=models["weak"], student=models["naive"], plain_student=None),
        splits=SimpleNamespace(student=empty),
        seed=seed,
        finetuner=finetuner,
        trained=trained,
        result=SeedResult(seed=seed, weak=score, ceiling=score, students=[]),
        scorer=None,
    )


ROWS = TransferRows(
    TASKS["paws"],
    Dataset.from_dict({"id": list("abcd"), "ground_truth": [0, 1, 0, 1]}),
    {"id": "google/paws", "revision": "c0ffee"},
    3,
)


def test_scores_are_computed_by_hand():
    predictions = {"weak": answers(1, 0, 0, 0), "naive": answers(1, 1, 0, 0), "ceiling": answers(1, 1, 1, 0)}
    first = with_transfer(context_of(0, predictions), {"paws": ROWS})
    scores = first.result.transfer["paws"]
    assert (scores.weak.accuracy, scores.ceiling.accuracy) == (0.25, 0.75)
    (student,) = scores.students
    assert (student.method, student.accuracy, student.n) == ("naive", 0.5, 4)
    assert student.pgr == 0.5 and student.pgr_undefined is None
    assert student.ci95[0] < 0.5 < student.ci95[1] and student.scores["auroc"] == 0.5
    assert (scores.dataset, scores.revision, scores.n_shared) == ("google/paws", "c0ffee", 3)
    assert (scores.weak.model, scores.ceiling.model) == ("weak", "naive")
    assert SeedResult.from_dict(first.result.to_dict()) == first.result

    # The ceiling of the second seed is no better than its supervisor, so that PGR is undefined.
    second = with_transfer(context_of(1, predictions | {"ceiling": answers(0, 1, 0, 0)}), {"paws": ROWS})
    (student,) = second.result.transfer["paws"].students
    assert student.pgr is None and "the ceiling (0.2500) is not above the weak supervisor" in student.pgr_undefined
    summary = summarise_transfer([first, second], "naive", same_rows=True)["paws"]
    assert (summary.accuracy_mean, summary.pgr_median, summary.n_seeds, summary.n_undefined) == (0.5, 0.5, 2, 1)
    assert summary.pgr_ci95 is None


def test_several_supervisors_predict_the_mean(monkeypatch):
    # The mean of the supervisors is right about three rows, the first supervisor about one row.
    sure = WeakLabels(list("abcd"), np.eye(2)[[0, 1, 0, 0]], {"stage": "y"})
    predictions = {"weak": answers(1, 0, 0, 0), "naive": answers(1, 1, 0, 0), "ceiling": answers(1, 1, 1, 1)}
    context = context_of(0, predictions | {"another": sure}, n_supervisors=2)
    seeds = []

    def another_supervisor(model, splits, args, seed, finetuner):
        seeds.append(seed)
        return context.trained["another"]

    monkeypatch.setattr(transfer, "train_supervisor", another_supervisor)
    scores = with_transfer(context, {"paws": ROWS}).result.transfer["paws"]
    assert seeds == [1_000_003] and scores.weak.accuracy == 0.75
    assert scores.students[0].pgr == -1.0


def test_without_other_tasks_nothing_changes():
    context = context_of(0, {"weak": None, "naive": None, "ceiling": None})
    assert with_transfer(context, {}) is context


# ---- The whole run ----


def texts(n: int, first: int, shift: int) -> Dataset:
    rows = range(first, first + n)
    return Dataset.from_list([{"text": f"w{i % 47} w{i % 43} w{(i + shift) % 41}", "y": i * 7 % 3 % 2} for i in rows])


def task_of(name: str, directory, **options) -> Task:
    return Task(name, str(directory / name), "{text}", label="y", class_names=("bad", "good"), **options)


@pytest.fixture
def directory(tmp_path):
    """The rows of three tasks, the files that define two of them, and two models."""
    for position, name in enumerate("abc"):
        (tmp_path / name).mkdir()
        splits = {"train": texts(120, 0, position), "test": texts(60, 200, position)}
        if name == "b":  # no training rows, and 6 training rows of the task a
            rows = Dataset.from_list([*splits["test"], *splits["train"].select(range(3)), *texts(6, 0, 0)])
            splits = {"test": rows}
        for split, rows in splits.items():
            rows.to_json(tmp_path / name / f"{split}.jsonl")
        (tmp_path / f"{name}.py").write_text(
            f"from w2s_hf import Task\nTASK = Task({name!r}, {str(tmp_path / name)!r}, '{{text}}', label='y', "
            "class_names=('bad', 'good'))\n"
        )
    for kind, name in (("llama", "weak"), ("gpt2", "strong")):
        make_model(kind).save_pretrained(tmp_path / name)
        make_tokenizer().save_pretrained(tmp_path / name)
    return tmp_path


def run(directory, *tasks: str, **options) -> ExperimentResult:
    args = ClassificationArguments(
        weak_model=str(directory / "weak"), student_model=str(directory / "strong"), n_train=24, n_weak=24,
        n_validation=8, n_test=40, methods=["naive"], check_memory=False, linear_probe=False,
        transfer_tasks=[str(directory / f"{name}.py") for name in tasks], **options,
    )  # fmt: skip
    training_args = WeakToStrongConfig(
        output_dir=str(directory / "out"), max_length=32, max_steps=1, use_cpu=True, bf16=False, report_to="none",
        gradient_checkpointing=False, save_strategy="no", eval_strategy="no", load_best_model_at_end=False,
        disable_tqdm=True,
    )  # fmt: skip
    config = StudentConfig(dtype="float32", lora_r=2)
    return run_experiment(str(directory / "a.py"), args, training_args, config)


def stages_of(directory) -> set[str]:
    return {path.name for path in (directory / "out" / "_stages").iterdir() if path.is_dir()}


def test_a_finished_run_gets_other_tasks(directory, figures, capsys):
    before = run(directory)
    stages = [stages_of(directory)]
    assert not before.runs[0].transfer and not before.summary[0].transfer
    results = run(directory, "b")
    assert list(results.runs[0].transfer) == ["b"]
    stages.append(stages_of(directory))
    # All other numbers are those of the first run.
    old, now = before.runs[0].to_dict(), results.runs[0].to_dict()
    assert {name: value for name, value in now.items() if name != "transfer"} == old

    results = run(directory, "b", "c")
    stages.append(stages_of(directory))
    for earlier, later in zip(stages, stages[1:], strict=False):
        new = later - earlier
        assert len(new) == 3 and {name.split("-")[0] for name in new} == {"transfer"}, "three models predict one task"
    with pytest.raises(ValueError, match="for the analyses --transfer_tasks b. This command would remove"):
        run(directory, "c")

    saved = json.loads((directory / "out" / "results.json").read_text())
    (of_seed,), (summary,) = saved["runs"], saved["summary"]
    assert list(of_seed["transfer"]) == list(summary["transfer"]) == ["b", "c"]
    of_b = of_seed["transfer"]["b"]
    assert of_b["dataset"] == "b" and of_b["revision"] == "local" and of_b["weak"]["n"] == 40
    assert of_b["students"][0]["pgr"] == summary["transfer"]["b"]["pgr_median"]
    groups = [label.get_text() for figure in figures for label in figure.axes[0].get_xticklabels()]
    assert [text.split("\n")[0] for text in groups if "naive: PGR" in text][-3:] == ["a", "b", "c"]
    report = (directory / "out" / "report.md").read_text()
    assert "## Other tasks" in report and "### b" in report and "### c" in report
    assert f"Another {of_b['n_shared']} rows share their text or a group with training rows" in report
    # The tiny models have learned nothing, and the report and the terminal say so.
    warning = f"on b, the ceiling has accuracy {of_b['ceiling']['accuracy']:.3f}"
    assert warning in report
    capsys.readouterr()
    print_table(results, "out")
    printed = capsys.readouterr().out
    assert warning in printed and "b, n = 40  student, naive" in printed and "40 test rows of a." in printed
    card = (directory / "out" / "students" / "naive-seed0" / "README.md").read_text()
    assert "evaluated on test rows of other tasks, without further training" in card
    assert f"{of_b['students'][0]['accuracy']:.3f} on b (PGR" in card and "has not been evaluated on other" not in card


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda path: path.joinpath("b", "test.jsonl").unlink(), "--transfer_tasks b: .*without data files"),
        (lambda path: texts(20, 0, 0).rename_column("text", "words").to_json(path / "b" / "test.jsonl"),
         "--transfer_tasks b: .* has no column 'text'"),
        (lambda path: path.joinpath("b.py").write_text(path.joinpath("b.py").read_text().replace(
            "'{text}'", "'{text} " + "w1 " * 40 + "'")), "--transfer_tasks b: weak: .*tokens"),
    ],
    ids=["no rows", "no column", "too long"],
)  # fmt: skip
def test_rows_are_checked_before_any_training(change, message, directory):
    change(directory)
    with pytest.raises(ValueError, match=message):
        run(directory, "b")
    assert not (directory / "out" / "_stages").exists()
