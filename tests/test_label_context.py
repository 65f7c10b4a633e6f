"""Tests the labels of methods in an experiment: transforms see no true labels, and stages depend on the code."""

import shutil
import textwrap
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from datasets import Dataset
from helpers.running import ROOT, TINY, forked, numbers, recipe_here

from w2s_hf import METHODS, Method, WeakLabels
from w2s_hf.experiments import label_context
from w2s_hf.experiments.cache import StageCache
from w2s_hf.experiments.finetuner import Finetuned
from w2s_hf.experiments.label_context import StudentRows, labels_of_method
from w2s_hf.methods import find_method
from w2s_hf.modeling.spec import ModelSpec
from w2s_hf.tasks import Half, PromptFormat

N = {"weak_half": 30, "weak_validation": 20, "student_half": 60, "student_validation": 20, "test": 20}
STUDENT = {"student_half", "student_validation", "test"}


# ---- Without training ----


@dataclass
class StubFinetuner:
    """Its models predict from the ids of rows only. It keeps the columns of all rows that it gets."""

    cache: StageCache
    features: dict[str, np.ndarray]

    def __post_init__(self):
        self.setting = SimpleNamespace(
            labels=WeakLabels, with_ground_truth=lambda rows: rows.map(lambda row: {"labels": row["ground_truth"]})
        )
        self.args = SimpleNamespace(per_device_eval_batch_size=8)
        self.trained: list[list[str]] = []

    def probabilities(self, ids, scale: float = 1.0) -> np.ndarray:
        positive = 1 / (1 + np.exp(-scale * np.array([self.features[row_id][0] for row_id in ids])))
        return np.stack([1 - positive, positive], axis=1).astype(np.float32)

    def finetune(self, name, spec, rows, predict, **options) -> Finetuned:
        assert "ground_truth" not in rows.train.column_names + rows.validation.column_names
        assert not any("ground_truth" in part.column_names for part in predict)
        self.trained.append(list(rows.train["id"]))
        ids = [row_id for part in predict for row_id in part["id"]]
        return Finetuned(spec, Path(name), WeakLabels(ids, self.probabilities(ids, 2), {"stage": name}))

    def predict(self, name, finetuned, rows, predict, *, title=None) -> WeakLabels:
        ids = [row_id for part in predict for row_id in part["id"]]
        return WeakLabels(ids, self.probabilities(ids, 3), {"stage": name})

    def fingerprint(self, rows, with_labels=True) -> str:
        return str(list(rows["id"]))

    def settings_of(self, changes) -> dict:
        return dict(changes)


def rows_of(part: str, truth: int) -> Dataset:
    ids = [f"{part} {index}" for index in range(N[part])]
    labels = [(index + truth) % 2 for index in range(len(ids))]
    numbers = {"group": labels, "question": [str(label) for label in labels]}  # they may depend on labels
    return Dataset.from_dict({"id": ids, "text": ids, "ground_truth": labels, **numbers})


def inputs_of(tmp_path, monkeypatch, truth: int = 0) -> tuple:
    """
    Returns the arguments of `labels_of_method` after the method. The rows of students have true labels that depend on
    `truth`, and nothing else does.
    """
    parts = {part: rows_of(part, truth if part in STUDENT else 0) for part in N}
    rng = np.random.default_rng(0)
    features = {row_id: rng.normal(size=3) for rows in parts.values() for row_id in rows["id"]}
    finetuner = StubFinetuner(StageCache(tmp_path / "stages"), features)
    ids = [row_id for part in STUDENT for row_id in parts[part]["id"]]
    supervisor = WeakLabels(sorted(ids), finetuner.probabilities(sorted(ids)), {"model": "weak", "stage": "weak-1"})
    weak = Finetuned(ModelSpec("weak", "weak", "1", None), Path("weak-1"), supervisor)
    splits = SimpleNamespace(
        test=parts["test"],
        weak=Half(parts["weak_half"], parts["weak_validation"]),
        task=SimpleNamespace(name="stub", class_names=("no", "yes")),
        provenance={},
        parts=parts,
    )
    monkeypatch.setattr(label_context, "ask", lambda finetuner, model, prompts, form: asked(finetuner, prompts))
    monkeypatch.setattr(label_context, "hidden_states", lambda finetuner, model, rows, **options: rows)
    monkeypatch.setattr(
        label_context,
        "load_arrays",
        lambda rows: {name: np.array([features[row_id] for row_id in part["id"]]) for name, part in rows.items()},
    )
    prompts = SimpleNamespace(zero_shot=list, format=PromptFormat(answers=(" no", " yes")))
    monkeypatch.setattr(label_context, "check_decoder", lambda model, option: None)
    student = SimpleNamespace(identity="student", name="student", config=SimpleNamespace(head_init="normal"))
    half = Half(parts["student_half"], parts["student_validation"])
    options = {"splits": splits, "student": student, "prompts": prompts, "seed": 0, "finetuner": finetuner}
    return half, weak, (weak, weak), options


def labelled_by(method: Method, inputs: tuple, **changes) -> WeakLabels:
    *positional, options = inputs
    return labels_of_method(method, *positional, **{**options, **changes})


def asked(finetuner: StubFinetuner, prompts: list[str]) -> np.ndarray:
    return finetuner.probabilities(prompts, 0.5)  # the texts are the ids


@pytest.mark.parametrize("name", [name for name, method in METHODS.items() if method.transform is not None])
def test_the_labels_of_a_transform_do_not_depend_on_true_labels_of_students(name, tmp_path, monkeypatch):
    found = [labelled_by(METHODS[name], inputs_of(tmp_path / str(truth), monkeypatch, truth)) for truth in (0, 1)]
    assert found[0].ids == found[1].ids and found[0].fingerprint == found[1].fingerprint
    known = set(found[0].ids)
    assert all(f"student_validation {index}" in known for index in range(N["student_validation"]))
    assert not any(row_id.startswith(("test", "weak")) for row_id in known)
    assert found[0].provenance["method"] == name and found[0].provenance["method_code"] == METHODS[name].code


def reachable(root) -> list:
    """Returns all objects that can be reached from attributes, items, closures and columns of an object."""
    found, waiting, seen = [], [root], set()
    while waiting:
        value = waiting.pop()
        if id(value) in seen or isinstance(value, str | bytes | int | float | type | np.ndarray | type(np)):
            continue
        seen.add(id(value))
        found.append(value)
        if isinstance(value, Dataset):
            continue
        if isinstance(value, dict):
            waiting += [*value.keys(), *value.values()]
        elif isinstance(value, list | tuple | set | frozenset):
            waiting += value
        else:
            waiting += vars(value).values() if hasattr(value, "__dict__") else []
            waiting += [cell.cell_contents for cell in getattr(value, "__closure__", None) or ()]
            waiting += [value.__self__] if hasattr(value, "__self__") else []
    return found


def truth_of_students(context) -> list[str]:
    """Returns the ids of rows of students with true labels that a context reaches."""
    datasets = [value for value in reachable(context) if isinstance(value, Dataset)]
    assert len(datasets) > 4, "the walk finds the rows"
    with_truth = [rows for rows in datasets if "ground_truth" in rows.data.column_names]
    assert with_truth, "the walk finds the validation rows of the supervisor"
    ids = [row_id for rows in with_truth for row_id in rows["id"]]
    return [row_id for row_id in ids if not row_id.startswith("weak")]


def test_a_context_does_not_reach_true_labels_of_students(tmp_path, monkeypatch):
    *positional, options = inputs_of(tmp_path, monkeypatch)
    context = StudentRows.of(*positional, **options)
    assert context.rows["id"] and truth_of_students(context) == []
    assert truth_of_students([context, options["splits"]]), "the walk would find them"
    for rows in (context.rows, *context._half, context._test):
        assert set(rows.column_names) == {"id", "text"}


def test_ids_of_rows_tell_nothing_about_their_labels(tmp_path, monkeypatch):
    """The ids of multiple-choice rows end in the position of the answer, which is the right one in some datasets."""
    half, weak, trained, options = inputs_of(tmp_path, monkeypatch)
    context = StudentRows.of(half, weak, trained, **options)
    assert context.ids == context.weak_labels.ids == context.supervisors[0].ids == [str(n) for n in range(80)]
    own = [*half.train["id"], *half.validation["id"]]
    np.testing.assert_array_equal(context.probabilities, weak.predictions.of(own))
    assert context.rows["text"][:] == own  # the texts of this test are the ids
    assert context.with_own_ids(context.weak_labels, "labels").ids == own


@pytest.mark.parametrize("read", ["context.rows", "context.rows.select([0])"])
def test_a_transform_that_reads_true_labels_gets_an_error(read, tmp_path, monkeypatch):
    path = tmp_path / "mine.py"
    path.write_text(
        textwrap.dedent(f"""
            from w2s_hf import Method
            def transform(context):
                truth = {read}["ground_truth"]
                return context.labels(truth)
            MINE = Method("mine", transform=transform)
        """)
    )
    with pytest.raises(ValueError) as error:
        labelled_by(find_method(str(path)), inputs_of(tmp_path, monkeypatch))
    assert str(error.value).startswith(f"method mine: {path}, line 4 raised ValueError: Column")
    assert "Methods do not get the true labels of rows that students are trained or scored on." in str(error.value)


def first_row_labelled(context):
    return context.labels(context.probabilities, keep=np.arange(len(context.rows)) == 0)


def unknown_rows(context):
    return WeakLabels(["test 0", "x"], [[0.5, 0.5]] * 2, {"stage": "s"})


def only_validation(context):
    return context.labels(context.probabilities, keep=~context.is_train)


def no_labels(context):
    return context.probabilities


def too_few(context):
    return context.labels(context.probabilities[1:])


@pytest.mark.parametrize(
    ("transform", "message"),
    [
        (unknown_rows, "method m: got labels for 2 rows that are not rows of the context, such as 'test 0', expected"),
        (only_validation, "method m: got no label for a training row, expected labels for at least one. Keep more"),
        (no_labels, r"method m: got a transform that returns ndarray, expected WeakLabels. Return context.labels\("),
        (too_few, "method m: .*test_label_context.py, line [0-9]+ raised ValueError: probabilities: got 79 rows, exp"),
    ],
)
def test_a_transform_with_a_wrong_result_is_refused(transform, message, tmp_path, monkeypatch):
    inputs = inputs_of(tmp_path, monkeypatch)
    with pytest.raises(ValueError, match=message):
        labelled_by(Method("m", transform=transform), inputs)
    assert not [path for path in (tmp_path / "stages").iterdir() if path.suffix != ".partial" and path.is_dir()]


def test_validation_rows_without_a_label_keep_the_label_of_the_supervisor(tmp_path, monkeypatch):
    inputs = inputs_of(tmp_path, monkeypatch)
    labels = labelled_by(Method("m", transform=first_row_labelled), inputs)
    validation = list(inputs[0].validation["id"])
    assert labels.ids == ["student_half 0", *validation]
    np.testing.assert_array_equal(labels.of(validation), inputs[1].predictions.of(validation))


def test_labels_are_computed_once_for_each_code_and_for_each_input(tmp_path, monkeypatch):
    inputs, calls = inputs_of(tmp_path, monkeypatch), tmp_path / "calls"

    def transform(context, path, factor=1):
        with open(path, "a") as file:
            file.write("x")
        return context.labels(context.probabilities)

    for factor, n_calls in ((1, 1), (1, 1), (2, 2), (1, 2)):
        labelled_by(Method("m", transform=partial(transform, path=str(calls), factor=factor)), inputs)
        assert len(calls.read_text()) == n_calls
    half, weak, *others = inputs
    swapped = WeakLabels(weak.predictions.ids, weak.predictions.probabilities[:, ::-1], {"stage": "weak-1"})
    other = replace(weak, predictions=swapped)
    method = Method("m", transform=partial(transform, path=str(calls)))
    labelled_by(method, (half, other, *others))
    assert len(calls.read_text()) == 3
    labelled_by(method, inputs, seed=1)
    assert len(calls.read_text()) == 4


def test_a_student_for_labels_is_trained_on_the_labelled_training_rows(tmp_path, monkeypatch):
    inputs = inputs_of(tmp_path, monkeypatch)

    def transform(context):
        labels = context.labels(context.probabilities, keep=np.arange(len(context.rows)) % 3 == 0)
        predictions = context.train_student(labels, context.rows)
        assert predictions.shape == (80, 2)
        return context.labels(context.once(lambda: predictions), weights=predictions[:, 1])

    labels = labelled_by(Method("m", transform=transform), inputs)
    assert inputs[-1]["finetuner"].trained == [[f"student_half {index}" for index in range(0, 60, 3)]]
    np.testing.assert_array_equal(labels.weights, labels.probabilities[:, 1])


# ---- An experiment with methods in a file ----

METHODS_OF_FILE = """
    import os
    import signal
    import threading
    import time
    from pathlib import Path

    import numpy as np

    from w2s_hf import Method

    HERE = FOLDER


    def kill_if(name):
        "Kills the process if a file asks for it."
        if (Path(HERE) / name).exists():
            (Path(HERE) / name).unlink()
            os.kill(os.getpid(), signal.SIGKILL)


    def squared_error(logits, soft_labels, step):
        if step.number == 2:
            kill_if("kill in the loss")
        return (logits.softmax(dim=-1) - soft_labels).square().sum(dim=-1)  # a comment


    def kill_after_the_first_checkpoint():
        while not list(Path(HERE).glob("*/_stages/student-for-labels-*/checkpoints/checkpoint-*/trainer_state.json")):
            time.sleep(0.001)
        kill_if("kill in the student")


    def of_students(context):
        if (Path(HERE) / "kill in the student").exists():
            threading.Thread(target=kill_after_the_first_checkpoint, daemon=True).start()
        keep = np.arange(len(context.rows)) % 4 > 0
        predictions = context.train_student(context.labels(context.probabilities, keep=keep), context.rows)
        return context.labels(predictions, weights=predictions.max(axis=1), keep=keep)


    LOSS = Method("squared", loss=squared_error)
    LABELS = Method("students", transform=of_students, training_args={"learning_rate": 3e-3})
    BOTH = Method("both", squared_error, of_students)
"""
FILES = ["mine.py:LOSS", "mine.py:LABELS", "mine.py:BOTH"]
OPTIONS = [*TINY, "--save_steps", "1", "--eval_steps", "1", "--methods", *FILES]


def write_methods(directory: Path, text: str = METHODS_OF_FILE) -> None:
    directory.mkdir(exist_ok=True)
    (directory / "mine.py").write_text(textwrap.dedent(text).replace("FOLDER", "'.'"))


def stages_of(output: Path) -> set[str]:
    return {path.name for path in (output / "_stages").iterdir() if path.is_dir()}


@pytest.fixture(scope="module")
def finished(cache, tmp_path_factory):
    directory, contexts, of = tmp_path_factory.mktemp("methods"), [], StudentRows.of
    write_methods(directory)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            StudentRows, "of", lambda *inputs, **options: contexts.append(of(*inputs, **options)) or contexts[-1]
        )
        process = recipe_here(*OPTIONS, "--output_dir", "out", cache=cache, cwd=directory)
    assert process.returncode == 0, process.stderr[-3000:]
    return directory / "out", contexts


def test_the_results_name_loss_transform_and_code(finished):
    settings = numbers(finished[0])["settings"]["losses"]
    assert list(settings) == ["squared", "students", "both"]
    assert settings["squared"].items() >= {"loss": "squared_error"}.items()
    assert settings["students"].items() >= {"transform": "of_students", "learning_rate": 3e-3}.items()
    assert settings["both"]["code"] == f"{settings['squared']['code']}-{settings['students']['code']}"
    assert [student["weak_labels"] for student in numbers(finished[0])["runs"][0]["students"]] == [
        "weak_labels/seed0", "weak_labels/seed0-for-students", "weak_labels/seed0-for-both"
    ]  # fmt: skip


def test_the_labels_of_a_method_are_saved_with_weights_and_labels_of_validation_rows(finished):
    output, contexts = finished
    n_train = len(contexts[0]._half.train)
    ids = list(contexts[0]._names.values())
    filled = [row_id for index, row_id in enumerate(ids) if index >= n_train and index % 4 == 0]
    weak, labels = (WeakLabels.load(output / "weak_labels" / name) for name in ("seed0", "seed0-for-students"))
    n_rows = len(contexts[0].rows)
    assert len(contexts) == 2 and len(labels) == sum(n % 4 > 0 for n in range(n_rows)) + len(filled)
    assert weak.weights is None and labels.provenance["method"] == "students"
    np.testing.assert_array_equal(labels.of(filled), weak.of(filled))
    position = {row_id: index for index, row_id in enumerate(labels.ids)}
    own = [position[row_id] for row_id in labels.ids if row_id not in filled]
    np.testing.assert_array_equal(labels.weights[own], labels.probabilities[own].max(axis=1))
    assert set(labels.weights[[position[row_id] for row_id in filled]]) == {1}
    both = WeakLabels.load(output / "weak_labels" / "seed0-for-both")
    assert both.fingerprint == labels.fingerprint, "the transform is the same"
    kinds = sorted(name.rpartition("-")[0] for name in stages_of(output))
    assert kinds.count("student-for-labels") == 1 and kinds.count("labels-both") == 1


def test_the_context_of_an_experiment_does_not_reach_true_labels_of_students(finished):
    for context in finished[1]:
        known = {row_id for rows in context._weak for row_id in rows["id"]}
        datasets = [value for value in reachable(context) if isinstance(value, Dataset)]
        with_truth = [rows for rows in datasets if "ground_truth" in rows.data.column_names]
        assert with_truth and not [rows for rows in with_truth if not known.issuperset(rows["id"])]
        for rows in (context.rows, *context._half, context._test):
            assert not {"ground_truth", "group", "question"} & set(rows.column_names)


@pytest.mark.parametrize(
    ("changes", "new"),
    [
        ({"# a comment": "# another comment"}, []),
        ({".square()": ".abs()"}, ["labels-both", "labels-students", "student-both", "student-squared"]),
        (
            {"% 4": "% 3"},
            [
                "labels-both",
                "labels-students",
                *(f"student-{name}" for name in "both for-labels squared students".split()),
            ],
        ),
    ],
    ids=["comment", "loss", "transform"],
)
def test_changed_code_trains_the_students_of_the_file(changes, new, finished, cache, tmp_path):
    """Students of other labels or losses of the file are trained again, `students` only if its labels differ."""
    text = METHODS_OF_FILE
    for before, after in changes.items():
        assert text.count(before) == 1
        text = text.replace(before, after)
    write_methods(tmp_path, text)
    shutil.copytree(finished[0], tmp_path / "out")
    options = [*OPTIONS, "--output_dir", "out"]
    process = recipe_here(*options, cache=cache, cwd=tmp_path)
    if not new:
        assert process.returncode == 0 and "Nothing was trained: all" in process.stderr
        assert numbers(tmp_path / "out") == numbers(finished[0])
    else:
        assert process.returncode == 1 and "with other settings" in process.stderr
        process = recipe_here(*options, "--overwrite_output_dir", "true", cache=cache, cwd=tmp_path)
        assert process.returncode == 0, process.stderr[-3000:]
    added = stages_of(tmp_path / "out") - stages_of(finished[0])
    assert sorted(name.rpartition("-")[0] for name in added) == new


def test_killed_in_a_method_and_run_again_ends_with_the_same_numbers(finished, cache, tmp_path, monkeypatch):
    """The process is killed by the loss in its last step, and by the transform while it trains a student."""
    write_methods(tmp_path, METHODS_OF_FILE)
    of_methods = shutil.ignore_patterns("student-*", "labels-*")
    shutil.copytree(finished[0] / "_stages", tmp_path / "out" / "_stages", ignore=of_methods)
    monkeypatch.chdir(tmp_path)
    for name in ("kill in the loss", "kill in the student"):
        (tmp_path / name).touch()
        process = forked(ROOT / "recipes" / "boolq.py", *OPTIONS, "--output_dir", "out", W2S_HF_CACHE=str(cache))
        assert process.returncode == 9, process.stderr[-3000:]
        assert list(tmp_path.glob("out/_stages/student-*.partial/checkpoints/checkpoint-*")), name
    process = recipe_here(*OPTIONS, "--output_dir", "out", cache=cache, cwd=tmp_path)
    assert process.returncode == 0, process.stderr[-3000:]
    assert "resumed from its last checkpoint" in process.stderr
    assert numbers(tmp_path / "out") == numbers(finished[0])
    for name in ("students", "both"):
        labels = [WeakLabels.load(path / f"weak_labels/seed0-for-{name}") for path in (tmp_path / "out", finished[0])]
        assert labels[0].fingerprint == labels[1].fingerprint


RANKS = """
    import os
    import numpy as np
    from w2s_hf import Method

    def of_rank_0(context):
        share = context.once(lambda: os.getpid() % 100 / 100)  # differs between the ranks
        probabilities = np.abs(context.probabilities - [[share / 2, 0]])
        labels = context.labels(probabilities / probabilities.sum(axis=1, keepdims=True))
        new = context.train_student(labels, context.rows)
        np.save(f"rank{os.environ['RANK']}.npy", np.concatenate([labels.probabilities, new]))
        return context.labels(new)

    RANKS = Method("ranks", transform=of_rank_0)
"""


@pytest.mark.distributed
def test_two_ranks_have_the_same_labels(cache, tmp_path, monkeypatch):
    write_methods(tmp_path, RANKS)
    monkeypatch.chdir(tmp_path)
    options = [*TINY, "--methods", "mine.py", "--output_dir", "out"]
    options += ["--config", "demo", "--student_model", "scratch-64x2"]  # without pretraining and control
    process = forked(ROOT / "recipes" / "boolq.py", *options, n_ranks=2, W2S_HF_CACHE=str(cache))
    assert process.returncode == 0, process.stderr[-3000:]
    first, second = (np.load(tmp_path / f"rank{rank}.npy") for rank in range(2))
    np.testing.assert_array_equal(first, second)
    labels = WeakLabels.load(tmp_path / "out" / "weak_labels" / "seed0-for-ranks")
    assert len(labels) * 2 == len(first)
