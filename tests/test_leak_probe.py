"""Tests that labels which the form of a text reveals are detected, and that the tasks of the package have none."""

import dataclasses
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from datasets import Dataset, load_dataset
from helpers.task_rows import MESSAGES, real

from w2s_hf import TASKS
from w2s_hf.demo.rows import demo_rows
from w2s_hf.tasks.leak_probe import Guess, format_features, leak_probe, main, probe_texts, skeleton

# Leaks of published code, rebuilt (EleutherAI/w2s; the second was fixed there).
LETTER_OR_TEXT = dataclasses.replace(
    TASKS["openbookqa"],
    choices=lambda row: [
        row["answerKey"] if letter == row["answerKey"] else text
        for letter, text in zip(row["choices"]["label"], row["choices"]["text"], strict=True)
    ],
)
ANSWER_IN_PROMPT = dataclasses.replace(
    TASKS["ethics_justice"],
    template="{scenario_and_answer}",
    fields=TASKS["ethics_justice"].fields
    | {"scenario_and_answer": lambda row: f"{row['scenario']}\nA: {'yes' if row['label'] else 'no'}"},
    reads=("scenario",),
    context="scenario_and_answer",
)
# The same leak from a column with few different words, which do not count as content.
ANSWER_FROM_A_COLUMN = dataclasses.replace(
    TASKS["ethics_justice"],
    template="{scenario}\nA: {verdict}",
    label=lambda row: int(row["verdict"] == "that is so"),
)
RIGHT_ANSWER_LISTED_FIRST = dataclasses.replace(
    TASKS["sciq"],
    template="{question}\n{listed}\nAnswer: {answer}",
    fields={"listed": lambda row: f"{row['correct_answer']}, or: {row['distractor1']}, or: {row['distractor2']}"},
)


@pytest.mark.parametrize("name", TASKS)
def test_no_task_gives_its_label_away_on_generated_rows(name, world):
    guesses = leak_probe(TASKS[name], demo_rows(TASKS[name], world, 1000, "probe"), confidence_level=0.999)
    assert guesses["form"].at_chance, guesses["form"]
    assert guesses["text"].at_chance, guesses["text"]  # generated rows all have the same length
    assert guesses["text"].n > 800


@pytest.mark.slow
@pytest.mark.real_data
@pytest.mark.parametrize("name", TASKS)
def test_no_task_gives_its_label_away_on_real_rows(name):
    rows = load_dataset(real(name))
    split = next(split for split in TASKS[name].train_split if split in rows)
    guesses = leak_probe(TASKS[name], rows[split], max_rows=4000)
    assert guesses["form"].at_chance, guesses["form"]
    assert guesses["text"].accuracy < 0.7, guesses["text"]


@pytest.mark.parametrize("task", [LETTER_OR_TEXT, ANSWER_IN_PROMPT, RIGHT_ANSWER_LISTED_FIRST])
def test_published_leaks_are_caught(task, world):
    form = leak_probe(task, demo_rows(TASKS[task.name], world, 1000, "probe"))["form"]
    assert not form.at_chance and form.accuracy > 0.95, form


@pytest.mark.slow
@pytest.mark.real_data
@pytest.mark.parametrize("task", [LETTER_OR_TEXT, ANSWER_IN_PROMPT, RIGHT_ANSWER_LISTED_FIRST])
def test_published_leaks_are_caught_on_real_rows(task):
    rows = load_dataset(real(task.name))["train"]
    guesses = leak_probe(task, rows, max_rows=2000)
    assert guesses["form"].accuracy > 0.95, guesses
    if task is not RIGHT_ANSWER_LISTED_FIRST:  # this leak is visible only if the answer is known
        assert guesses["text"].accuracy > 0.95, guesses


def test_a_column_of_categories_is_no_content(world):
    rows = demo_rows(TASKS["ethics_justice"], world, 600, "probe")
    verdicts = ["that is so" if label else "never" for label in rows["label"]]
    form = leak_probe(ANSWER_FROM_A_COLUMN, rows.add_column("verdict", verdicts))["form"]
    assert form.accuracy == 1


def test_lengths_punctuation_and_ends_are_seen():
    rng = np.random.default_rng(0)
    truth = rng.integers(2, size=600)
    groups = [str(i // 2) for i in range(600)]
    words = [" ".join(f"w{n}" for n in rng.integers(50, size=8)) for _ in truth]

    def accuracy(texts):
        return probe_texts(texts, truth, groups).accuracy

    plain = probe_texts(words, truth, groups)
    assert plain.at_chance and plain.accuracy == pytest.approx(0.5, abs=0.08)
    assert accuracy([word + "!" * y for word, y in zip(words, truth, strict=True)]) == 1
    assert accuracy([f"{word} so it is {'yes' if y else 'no'}" for word, y in zip(words, truth, strict=True)]) == 1
    assert accuracy([word + " w1" * y for word, y in zip(words, truth, strict=True)]) > 0.7
    assert accuracy([word.capitalize() if y else word for word, y in zip(words, truth, strict=True)]) == 1
    assert accuracy([f"{word}\nAnswer: {'A' if y else 'cat'}" for word, y in zip(words, truth, strict=True)]) == 1


def test_groups_are_held_out_together():
    # Each group has its own length and label, so a model that is tested on training groups would be perfect.
    lengths = np.repeat(np.arange(40), 20)
    truth = np.repeat(np.random.default_rng(0).permutation(40) % 2, 20)
    texts = ["x" * (10 + length) for length in lengths]
    apart = probe_texts(texts, truth, [str(length) for length in lengths])
    leaky = probe_texts(texts, truth, [str(i) for i in range(800)])
    assert leaky.accuracy > 0.85 and apart.accuracy < 0.7
    assert np.diff(apart.ci95) > 3 * np.diff(leaky.ci95), "the interval is over groups"


def test_features_have_names_and_hand_worked_values():
    features, names = format_features(["One, two.\nAnswer: B", "Three\nAnswer: four"] * 20)
    value = dict(zip(names, features[0], strict=True))
    assert value["characters of the text"] == 19 and value["words of the last line"] == 2
    assert (
        value["number of , in the text"] == value["number of . in the text"] == 1
        and value["capitals of the last line"] == 2
    )
    assert value["last line is one letter"] == 1 and features[1][names.index("last line is one letter")] == 0
    assert value["ends in 'B'"] == 1 and value["begins with 'One,'"] == 1 and value["lines"] == 1


def test_a_skeleton_keeps_what_is_not_content_and_the_place_of_what_is():
    text = "a passage\nIs it red, or: blue? Answer: red"
    assert skeleton(text, ["a passage", "blue", "red"]) == "<>\nIs it <1>, or: <>? Answer: <1>"
    assert skeleton("B, not a B b", ["B b"]) == "B, not a <>"
    assert skeleton("one two", ["one", "two"]) == "<>", "adjacent pieces count as one"
    assert skeleton("one two one", ["one", "two"]) == "<1> <> <1>"


@pytest.mark.parametrize("n", [0, 4])
def test_too_few_rows_say_so(n):
    message = f"Got {n} texts in {n} groups .* expected at least ten groups and both classes"
    with pytest.raises(ValueError, match=message):
        probe_texts(list("abcd")[:n], [0, 1, 0, 1][:n], list("abcd")[:n])


def test_chance_is_in_the_interval():
    assert not Guess(0.6, (0.55, 0.65), 100, []).at_chance and Guess(0.4, (0.35, 0.45), 100, []).at_chance


@pytest.mark.slow
def test_the_command_line(tmp_path, capsys):
    path = str(tmp_path / "messages.csv")
    Dataset.from_list(
        [{**row, "message": row["message"] + "!" * (row["is_spam"] == "spam")} for row in MESSAGES]
    ).to_csv(path)
    task = tmp_path / "spam.py"
    definition = "from w2s_hf import Task\n"
    definition += "T = Task('spam', 'nowhere', '{message}', label='is_spam', class_names=('ham', 'spam'))\n"
    task.write_text(definition)
    assert main(["--task", str(task), "--dataset_path", path]) == 0
    out = capsys.readouterr().out
    assert "text of the task" in out and "at chance" in out
    assert "above chance (in the dataset)" in out and "AUROC" in out  # the exclamation marks
    leaky = definition.replace(
        "'{message}'", "'{message} {mark}', fields={'mark': lambda row: '?' if row['is_spam'] == 'spam' else '.'}"
    )
    task.write_text(leaky)
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    process = subprocess.run(
        [sys.executable, "-m", "w2s_hf.tasks.leak_probe", "--task", str(task), "--dataset_path", path],
        capture_output=True, text=True, env=environment, timeout=120,
    )  # fmt: skip
    assert process.returncode == 1 and "LEAK" in process.stdout
    with pytest.raises(SystemExit, match="Did you mean 'boolq'"):
        main(["--task", "bolq"])
