"""Splits: balanced, apart, deterministic; texts that keep their question; errors that name what was found."""

import os
from pathlib import Path

import numpy as np
import pytest
from datasets import Dataset, DatasetDict

from w2s_hf import TASKS, load_task
from w2s_hf.tasks import find_task, tokenize_rows
from w2s_hf.tasks.task import TaskSplits, load_splits

BOOLQ = TASKS["boolq"]
REAL_DATA = Path(os.environ.get("W2S_HF_REAL_DATA", Path(__file__).parents[2] / "shared" / "data"))


def passages(n, prefix="", yes=0.6, questions_a_passage=3):
    rng = np.random.default_rng(0)
    return Dataset.from_dict(
        {
            "passage": [f"{prefix} passage {i // questions_a_passage} has words" for i in range(n)],
            "question": [f"is {prefix} {i} a number" for i in range(n)],
            "answer": (rng.random(n) < yes).tolist(),
        }
    )


def boolq(n=600, **kwargs):
    return load_splits(BOOLQ, raw=DatasetDict(train=passages(n), validation=passages(200, "test")), **kwargs)


def check(splits: TaskSplits):
    """What every task promises."""
    groups, texts = {}, set()
    for name, part in splits.parts.items():
        assert abs(np.mean(part["ground_truth"]) - 0.5) <= 0.01 or len(part) < 100
        for group, text in zip(part["group"], part["text"], strict=True):
            assert groups.setdefault(group.casefold(), name) == name, "a group on two sides"
            assert text.casefold() not in texts, "a duplicate"
            texts.add(text.casefold())
    assert 0.7 < len(splits.weak_half) / len(splits.student_half) < 1.4
    assert len(splits.validation) < 0.4 * len(splits.student_half)


def test_splits_are_balanced_apart_and_the_same_every_time():
    splits = boolq()
    check(splits)
    assert splits.fingerprint == boolq().fingerprint != boolq(seed=1).fingerprint
    sizes = {name: len(part) for name, part in boolq(n_train=100, n_weak=60, n_validation=20, n_test=50).parts.items()}
    assert sizes == {"weak_half": 60, "student_half": 100, "validation": 20, "test": 50}


def test_training_rows_that_are_in_the_test_set_are_dropped():
    test = passages(200, "test")
    train = Dataset.from_list([*passages(300), *test.select(range(30))])
    upper = train.map(lambda row: {"passage": row["passage"].upper()})  # spelling does not hide a duplicate
    splits = load_splits(BOOLQ, raw=DatasetDict(train=upper, validation=test))
    check(splits)
    assert not any("TEST" in text for text in splits.weak_half["text"])


def test_repeated_rows_count_once():
    splits = boolq()
    twice = DatasetDict(train=Dataset.from_list([*passages(600), *passages(600)]), validation=passages(200, "test"))
    assert load_splits(BOOLQ, raw=twice).fingerprint == splits.fingerprint


@pytest.mark.parametrize("max_length", [14, 18, 40])
def test_the_context_is_shortened_never_the_question(max_length, tokenizer):
    words = " ".join(f"w{i}" for i in range(30))
    rows = Dataset.from_dict(
        {"id": ["a", "b"], "text": [f"{words}\nQuestion: w40 w41 w42", "w1\nQuestion: w5"], "context": [words, "w1"]}
    )
    tokens = tokenize_rows(rows, tokenizer, max_length)["input_ids"]
    assert tokenizer.decode(tokens[0]).endswith("w40 w41 w42") and tokenizer.decode(tokens[0]).startswith("w0 w1")
    assert len(tokens[0]) == min(max_length, 35)
    assert tokens[1] == tokenizer(rows["text"][1])["input_ids"]


def test_a_question_that_does_not_fit_is_named(tokenizer):
    rows = Dataset.from_dict({"id": ["train-7"], "text": ["w1 w2 Question: w3 w4 w5"], "context": ["w1 w2"]})
    with pytest.raises(ValueError, match="train-7 is 5 tokens long without its context, more than max_length 3"):
        tokenize_rows(rows, tokenizer, 3)


def test_errors_say_what_was_found():
    with pytest.raises(ValueError, match="got 'bolq', expected one of boolq, sst2"):
        find_task("bolq")
    with pytest.raises(FileNotFoundError, match="no directory"):
        load_task("boolq", dataset_path="nowhere")
    train, test = passages(60), passages(60, "test")
    with pytest.raises(ValueError, match="no split 'validation'; the splits found are train, test"):
        load_splits(BOOLQ, raw=DatasetDict(train=train, test=test))
    with pytest.raises(ValueError, match="no column 'passage'; it has question, answer"):
        load_splits(BOOLQ, raw=DatasetDict(train=train.remove_columns("passage"), validation=test))
    with pytest.raises(ValueError, match="'train' is empty"):
        load_splits(BOOLQ, raw=DatasetDict(train=train.select([]), validation=test))
    with pytest.raises(ValueError, match="are all 'yes'"):
        load_splits(BOOLQ, raw=DatasetDict(train=passages(60, yes=1.1), validation=test))
    with pytest.raises(ValueError, match="train-1 has no 'answer'"):
        broken = Dataset.from_list([train[0], {**train[1], "answer": None}])
        load_splits(BOOLQ, raw=DatasetDict(train=broken, validation=test))
    with pytest.raises(ValueError, match="1000 rows asked for in `weak_half`.*Ask for fewer"):
        load_splits(BOOLQ, raw=DatasetDict(train=train, validation=test), n_train=1000)
    unlabelled = Dataset.from_dict({"sentence": ["a", "b"], "label": [-1, -1]})
    with pytest.raises(ValueError, match="validation-0 has the label -1"):
        load_splits(TASKS["sst2"], raw=DatasetDict(train=unlabelled, validation=unlabelled))


def test_splits_made_by_hand_are_checked():
    parts = {name: part for name, part in boolq().parts.items()}
    with pytest.raises(ValueError, match="`validation` is empty"):
        TaskSplits(BOOLQ, **{**parts, "validation": parts["validation"].select([])})
    with pytest.raises(ValueError, match="is in `weak_half` and again in `student_half`"):
        TaskSplits(BOOLQ, **{**parts, "student_half": parts["weak_half"]})
    renamed = parts["weak_half"].map(lambda row: {"id": row["id"] + "'"})
    with pytest.raises(ValueError, match="group of row .* is in `weak_half` and in `student_half`"):
        TaskSplits(BOOLQ, **{**parts, "student_half": renamed})
    one_class = parts["test"].filter(lambda row: row["ground_truth"] == 1)
    with pytest.raises(ValueError, match=r"`test` .* has the classes \[1\]"):
        TaskSplits(BOOLQ, **{**parts, "test": one_class})


def test_the_next_source_is_tried_where_one_is_gone(monkeypatch):
    first, second = BOOLQ.sources
    asked = []

    def available(name, **kwargs):
        asked.append(name)
        if name == first.id:
            raise FileNotFoundError("gone")
        return "c0ffee"

    def load(name, config, revision):
        assert (name, config, revision) == (second.id, second.config, "c0ffee")
        return DatasetDict(train=passages(600), validation=passages(200, "test"))

    monkeypatch.setattr("w2s_hf.tasks.task.ensure_available", available)
    monkeypatch.setattr("w2s_hf.tasks.task.load_dataset", load)
    assert load_splits(BOOLQ).source == {"id": second.id, "revision": "c0ffee"}
    assert asked == [first.id, second.id]

    def unreachable(name, **kwargs):
        asked.append(name)
        raise ConnectionError("no answer")

    monkeypatch.setattr("w2s_hf.tasks.task.ensure_available", unreachable)
    with pytest.raises(ConnectionError, match="no answer"):
        load_splits(BOOLQ)
    assert len(asked) == 3, "a Hub that does not answer is asked once"


@pytest.mark.real_data
@pytest.mark.parametrize("name", ["boolq", "sst2"])
def test_real_rows(name):
    if not (REAL_DATA / name).is_dir():
        pytest.skip(f"no real rows in {REAL_DATA}")
    splits = load_task(name, dataset_path=str(REAL_DATA / name))
    check(splits)
    assert splits.fingerprint == load_task(name, dataset_path=str(REAL_DATA / name)).fingerprint
