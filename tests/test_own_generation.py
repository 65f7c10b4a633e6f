"""Tests of custom generative tasks: a class in one file defines the task of a whole experiment."""

import json
import random
import re
from pathlib import Path

import pytest
from datasets import Dataset, DatasetDict
from helpers.models import make_character_tokenizer, make_language_model
from helpers.predictions import check_predictions

from w2s_hf import CompletionConfig, StudentConfig, WeakToStrongConfig
from w2s_hf.experiments.config import GenerationArguments, RewardArguments
from w2s_hf.experiments.experiment import run_experiment
from w2s_hf.labels import Completion
from w2s_hf.tasks import GenerationTask, PreferenceTask, find_task
from w2s_hf.tasks.generation import BrokenRowError


class Additions(GenerationTask):
    columns = ("question", "answer")

    def example(self, row: dict) -> dict:
        if not row["question"]:
            raise BrokenRowError("no question")
        return {"prompt": f"{row['question']} =", "ground_truth": f" {row['answer']}"}

    def parse(self, text: str) -> int | None:
        number = re.match(r"\s*(\d+)", text)
        return int(number[1]) if number else None


ADDITIONS = Additions("additions", "me/additions", description="Sums of two numbers", test_split=None)


def additions(n: int) -> Dataset:
    pairs = random.Random(0).sample([(a, b) for a in range(40) for b in range(40)], n)
    rows = [{"question": f"{a} + {b}", "answer": str(a + b)} for a, b in pairs]
    return Dataset.from_list([*rows, rows[0], {"question": "", "answer": "1"}])


def options_of(directory, output) -> tuple:
    args = GenerationArguments(
        dataset_path=str(directory / "additions.jsonl"), weak_model=str(directory / "weak"),
        student_model=str(directory / "strong"), n_train=40, n_weak=30, n_validation=16, n_test=20, check_memory=False,
    )  # fmt: skip
    training_args = CompletionConfig(
        output_dir=str(output), max_length=32, max_new_tokens=5, max_steps=3, learning_rate=1e-3, use_cpu=True,
        bf16=False, gradient_checkpointing=False, report_to="none", save_strategy="no",
    )  # fmt: skip
    return args, training_args, StudentConfig(dtype="float32", lora_r=4)


@pytest.fixture
def directory(tmp_path):
    """A file with rows, and two models for them."""
    additions(200).to_json(tmp_path / "additions.jsonl")
    tokenizer = make_character_tokenizer()
    for name in ("weak", "strong"):
        make_language_model(tokenizer, small=name == "weak").save_pretrained(tmp_path / name)
        tokenizer.save_pretrained(tmp_path / name)
    return tmp_path


def test_the_whole_experiment_runs_on_it(directory):
    output = directory / "out"
    run_experiment(ADDITIONS, *options_of(directory, output))
    results = json.loads((output / "results.json").read_text())
    assert (results["task"], results["setting"]) == ("additions", "generation")
    assert results["dataset"]["n_dropped"] == {"no question": 1}
    (run,) = results["runs"]
    assert run["weak"]["n"] == run["ceiling"]["n"] == 20 and "n_cut" in run["ceiling"]
    assert [entry["name"] for entry in run["baselines"]] == ["zero-shot"]
    assert set(check_predictions(output)["role"]) == {"weak", "ceiling", "naive"}
    assert [entry["method"] for entry in run["students"]] == ["naive"]
    report = (output / "report.md").read_text()
    assert "Sums of two numbers" in report and "zero-shot" in report
    card = (output / "students" / "naive-seed0" / "README.md").read_text()
    assert "setting: generation" in card and 'task_type="CAUSAL_LM"' in card


def test_it_is_found_in_its_file(directory):
    task = f"{Path(__file__)}:ADDITIONS"
    assert find_task(task, GenerationTask).description == ADDITIONS.description
    run_experiment(task, *options_of(directory, directory / "out"))
    assert json.loads((directory / "out" / "results.json").read_text())["task"] == "additions"
    # Recipes of texts refuse it.
    with pytest.raises(ValueError, match="defines no w2s_hf.Task"):
        find_task(str(Path(__file__)))
    assert find_task("anthropic_hh", PreferenceTask).name == "anthropic_hh"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"example": lambda task, row: {"prompt": None, "ground_truth": "1"}}, "got None as the `prompt`"),
        ({"example": lambda task, row: {"id": 7, "prompt": "1", "ground_truth": " 1"}}, "got 7 as the `id`"),
        ({"extra_columns": ("unit",)}, "an example without 'unit', expected all `extra_columns`"),
        ({"parse": lambda task, text: None}, "got False from `is_correct` for the ground truth"),
        (
            {"parse": lambda task, text: re.search(r"\d\d+", text) and text},  # no sums below ten
            r"' 4' of the prompt '2 \+ 2 =', expected True \(8 of 201 rows of the split 'train'\)",
        ),
        ({"is_correct": lambda task, *columns: "yes"}, "got 'yes' from `is_correct`"),
        ({"setting": "sums"}, "got the setting 'sums', expected 'generation'"),
    ],
    ids=[
        "no prompt",
        "id a number",
        "no extra column",
        "no answer",
        "no answer to some rows",
        "no bool",
        "a setting of its own",
    ],
)
def test_a_faulty_task_is_refused_before_training(change, message, directory):
    task = type("Faulty", (Additions,), change)("additions", "me/additions", test_split=None)
    with pytest.raises(ValueError, match=message):
        run_experiment(task, *options_of(directory, directory / "out"))
    assert not list((directory / "out").rglob("predictions"))


def test_arguments_of_another_setting_are_refused(directory):
    args, training_args, config = options_of(directory, directory / "out")
    others = RewardArguments(weak_model="a", student_model="b", n_train=4, n_weak=4)
    with pytest.raises(TypeError, match="args: got RewardArguments, expected GenerationArguments for additions"):
        run_experiment(ADDITIONS, others, training_args, config)
    others = WeakToStrongConfig(output_dir=str(directory / "out"), use_cpu=True, bf16=False, report_to="none")
    with pytest.raises(TypeError, match="training_args: got WeakToStrongConfig, expected CompletionConfig"):
        run_experiment(ADDITIONS, args, others, config)
    assert not (directory / "out").exists()


def test_the_demo_is_refused(tmp_path):
    args = GenerationArguments(weak_model="a", student_model="b", demo=True, n_train=4, n_weak=4)
    training_args = CompletionConfig(output_dir=str(tmp_path), use_cpu=True, bf16=False, report_to="none")
    with pytest.raises(ValueError, match="additions, which has no demo"):
        run_experiment(ADDITIONS, args, training_args, StudentConfig())


def test_rows_are_unique_and_their_questions_stay_in_one_part():
    task = Additions("additions", "me/additions")
    rows = additions(60)
    twice = rows.select(range(4)).map(
        lambda row: {"answer": row["answer"] + "1"}
    )  # another answer to the same question
    raw = DatasetDict(train=rows, test=Dataset.from_list([*additions(90).select(range(60, 80)), *twice]))
    splits = task.load(raw=raw, n_train=20, n_weak=20, n_validation=4)
    assert len(splits.test) == 24 and splits.n_dropped == {"no question": 1}
    test, train = set(splits.test["prompt"]), {p for part in splits.student for p in part["prompt"]}
    assert not test & (train | set(splits.weak_half["prompt"]))
    assert splits.fingerprint == task.load(raw=raw, n_train=20, n_weak=20, n_validation=4).fingerprint


def test_prompts_that_differ_by_case_or_spacing_alone_are_different_rows():
    questions = [f"{word} +{space}{n}" for n in range(30) for word in "aA" for space in ("", " ")]
    rows = [{"question": question, "answer": question[0]} for question in questions]
    copy = type("Copy", (Additions,), {"parse": lambda task, text: text})("copy", "me/copy", test_split=None)
    splits = copy.load(raw=DatasetDict(train=Dataset.from_list([*rows, rows[0]])))
    prompts = [prompt for part in splits.parts.values() for prompt in part["prompt"]]
    assert sorted(prompts) == sorted(f"{question} =" for question in questions)


def test_a_column_that_is_not_there_is_named():
    with pytest.raises(ValueError, match="has no column 'answer'. Got question, expected question, answer"):
        ADDITIONS.load(raw=DatasetDict(train=additions(60).remove_columns("answer")))


def test_answers_that_are_longer_than_what_is_generated_are_refused():
    with pytest.raises(ValueError, match="of 4 tokens with its end-of-text token, .* Set --max_new_tokens 4"):
        ADDITIONS.load(raw=DatasetDict(train=additions(90)), tokenizers=[make_character_tokenizer()], max_new_tokens=2)


@pytest.mark.parametrize(
    ("text", "is_cut", "is_correct"),
    [
        (" 12", False, True),
        ("12 or so", False, True),
        (" 12", True, False),
        (" 12 is", True, True),
        ("no", False, False),
    ],
)
def test_an_answer_is_parsed_and_the_last_word_of_a_cut_one_is_not(text, is_cut, is_correct):
    assert ADDITIONS.is_correct(Completion(text, is_cut), {"ground_truth": " 12"}) == is_correct


def test_answers_are_the_same_by_what_they_mean():
    ours, theirs = Completion(" 12", False), Completion("12 apples", False)
    assert ADDITIONS.is_same(ours, theirs, {})
    assert not ADDITIONS.is_same(ours, Completion("none", False), {})
    assert not ADDITIONS.is_same(Completion("none", False), Completion("nil", False), {})
