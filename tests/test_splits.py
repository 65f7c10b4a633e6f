"""Tests of splits: balanced, disjoint and deterministic halves, and errors that name the problem."""

import pytest
from datasets import Dataset, DatasetDict
from helpers.task_rows import check, passages

from w2s_hf import TASKS
from w2s_hf.tasks import TaskSplits, load_task

BOOLQ = TASKS["boolq"]


def boolq(n=600, **kwargs):
    return load_task(BOOLQ, raw=DatasetDict(train=passages(n), validation=passages(200, "test")), **kwargs)


def test_splits_are_balanced_apart_and_the_same_every_time():
    splits = boolq()
    check(splits)
    assert splits.fingerprint == boolq().fingerprint != boolq(seed=1).fingerprint
    sizes = {name: len(part) for name, part in boolq(n_train=100, n_weak=60, n_validation=21, n_test=50).parts.items()}
    assert sizes == {
        "weak_half": 60, "weak_validation": 10, "student_half": 100, "student_validation": 11, "test": 50
    }  # fmt: skip


def test_halves_of_an_unbalanced_dataset_are_of_one_size():
    # If rows were split without classes, one half would have more of the rarer class, and balancing would drop rows.
    for seed in range(5):
        raw = DatasetDict(train=passages(1500, yes=0.9, questions_a_passage=1), validation=passages(200, "test"))
        splits = load_task(BOOLQ, raw=raw, seed=seed)
        assert abs(len(splits.weak_half) - len(splits.student_half)) <= 2


def test_of_equal_texts_the_same_one_is_kept_in_any_order():
    train = Dataset.from_list(
        [row | {"passage": f(row["passage"])} for row in passages(300) for f in (str.upper, str)]
    )
    test = passages(200, "test")
    splits = [
        load_task(BOOLQ, raw=DatasetDict(train=rows, validation=test)) for rows in (train, train.shuffle(seed=1))
    ]
    assert splits[0].fingerprint == splits[1].fingerprint


def test_only_the_validation_size_is_given():
    splits = boolq(n_validation=40)
    assert len(splits.weak_validation) == len(splits.student_validation) == 20
    assert len(splits.student_half) > 150


def test_training_rows_that_are_in_the_test_set_are_dropped():
    test = passages(200, "test")
    train = Dataset.from_list([*passages(300), *test.select(range(30))])
    upper = train.map(lambda row: {"passage": row["passage"].upper()})  # case and spacing do not hide a duplicate
    splits = load_task(BOOLQ, raw=DatasetDict(train=upper, validation=test))
    check(splits)
    assert not any("TEST" in text for text in splits.weak_half["text"])


def test_rows_that_hang_together_through_others_stay_together():
    # Ten chains of twenty sentences (a-b, b-c, c-d, ...), in which no row shares a sentence with all other rows.
    rows = [
        {"sentence1": f"s{c}-{i}", "sentence2": f"s{c}-{i + 1}", "label": (c + i) % 2}
        for c in range(10)
        for i in range(20)
    ]
    test = [{"sentence1": f"t{i}", "sentence2": f"u{i}", "label": i % 2} for i in range(20)]
    test.append({"sentence1": "s0-0", "sentence2": "u", "label": 0})
    raw = DatasetDict(train=Dataset.from_list(rows), test=Dataset.from_list(test))
    splits = load_task(TASKS["paws"], raw=raw)
    chain_of = {}
    for name, part in splits.parts.items():
        for text in part["text"]:
            chain = text.split("\n")[1].split("-")[0]
            assert chain_of.setdefault(chain, name) == name
    assert len(chain_of) > 20 and chain_of.get("s0", "test") == "test", "a training row is connected with a test row"


def test_repeated_rows_count_once():
    splits = boolq()
    twice = DatasetDict(train=Dataset.from_list([*passages(600), *passages(600)]), validation=passages(200, "test"))
    assert load_task(BOOLQ, raw=twice).fingerprint == splits.fingerprint


def test_a_huge_group_goes_to_a_half_not_to_the_validation_rows():
    huge = passages(300, "same", questions_a_passage=300)
    train = Dataset.from_list([*passages(600), *huge])
    for seed in range(40):
        splits = load_task(BOOLQ, raw=DatasetDict(train=train, validation=passages(200, "test")), seed=seed)
        for name in ("weak_validation", "student_validation"):
            assert not any("same" in text for text in splits.parts[name]["text"])


TRAIN, TEST = passages(60), passages(60, "test")
UNLABELLED = Dataset.from_dict({"sentence": ["a", "b"], "label": [-1, -1]})
# The task, raw splits, options and message.
UNUSABLE = {
    "no test split": ("boolq", {"train": TRAIN, "test": TEST}, {},
                      "got the splits train, test, expected 'validation'"),
    "no training split": ("anli_r2", {"validation": TEST}, {},
                          "got the splits validation, expected 'train_r2' or 'train'"),
    "no column": ("boolq", {"train": TRAIN.remove_columns("passage"), "validation": TEST}, {},
                  "no column 'passage'. Got question, answer"),
    "no rows": ("boolq", {"train": TRAIN.select([]), "validation": TEST}, {}, "'train' has no rows"),
    "one class": ("boolq", {"train": passages(60, yes=1.1), "validation": TEST}, {},
                  "the 60 rows of the split 'train' are all 'yes', expected both classes"),
    "too few rows": ("boolq", {"train": TRAIN, "validation": TEST}, {"n_train": 1000},
                     "got --n_train 1000, --n_weak 1000, .*expected at most .*Set --n_"),
    "few for validation": ("boolq", {"train": TRAIN, "validation": TEST}, {"n_train": 10, "n_validation": 3},
                           "--n_validation: got 3, expected at least 4"),
    "unlabelled": ("sst2", {"train": UNLABELLED, "validation": UNLABELLED}, {},
                   "has the label -1, expected 0 or 1, or 'negative' or 'positive'"),
}  # fmt: skip


@pytest.mark.parametrize(("task", "raw", "options", "message"), UNUSABLE.values(), ids=UNUSABLE)
def test_errors_say_what_was_found(task, raw, options, message):
    with pytest.raises(ValueError, match=message):
        load_task(TASKS[task], raw=DatasetDict(raw), **options)


@pytest.mark.parametrize(
    ("name", "rows", "message"),
    [
        ("weak_validation", lambda parts: parts["weak_validation"].select([]), "got no rows for `weak_validation`"),
        ("student_half", lambda parts: parts["weak_half"], "in `weak_half` and in `student_half`, expected it in one"),
        ("student_half", lambda parts: parts["weak_half"].map(lambda row: {"id": row["id"] + "'"}),
         "group of row .* in `weak_half` and in `student_half`"),
        ("test", lambda parts: parts["test"].filter(lambda row: row["ground_truth"] == 1),
         r"`test` .* has the classes \[1\]"),
    ],
    ids=["empty", "same ids", "same groups", "one class"],
)  # fmt: skip
def test_splits_made_by_hand_are_checked(name, rows, message):
    parts = dict(boolq(n_train=40).parts)
    with pytest.raises(ValueError, match=message):
        TaskSplits(BOOLQ, **{**parts, name: rows(parts)})


def test_the_next_source_is_tried_where_one_is_gone(monkeypatch):
    first, second = BOOLQ.sources
    names = []

    def available(name, **kwargs):
        names.append(name)
        if name == first.id:
            raise FileNotFoundError("gone")
        return "c0ffee"

    def load(name, config, revision):
        assert (name, config, revision) == (second.id, second.config, "c0ffee")
        return DatasetDict(train=passages(600), validation=passages(200, "test")).rename_column("answer", "label")

    monkeypatch.setattr("w2s_hf.tasks.loading.ensure_available", available)
    monkeypatch.setattr("w2s_hf.tasks.loading.load_dataset", load)
    assert load_task(BOOLQ).source == {"id": second.id, "revision": "c0ffee"}
    assert names == [first.id, second.id]

    def unreachable(name, **kwargs):
        names.append(name)
        raise ConnectionError("no answer")

    monkeypatch.setattr("w2s_hf.tasks.loading.ensure_available", unreachable)
    with pytest.raises(ConnectionError, match="no answer"):
        load_task(BOOLQ)
    assert len(names) == 3, "a Hub that does not respond is contacted once"


def test_a_half_is_training_and_validation_rows():
    splits = boolq(n_train=40, n_links=1)
    assert splits.weak == (splits.weak_half, splits.weak_validation)
    assert splits.student == (splits.student_half, splits.student_validation)
    assert splits.bootstrap(1) == (splits.links["link_1"], splits.links["link_1_validation"])
    train, validation = splits.student.map(lambda rows: rows.select([0]))
    assert train["id"] == splits.student_half["id"][:1] and validation["id"] == splits.student_validation["id"][:1]
    assert splits.provenance == {
        "task": "boolq", "dataset": splits.source, "split_fingerprint": splits.fingerprint
    }  # fmt: skip
