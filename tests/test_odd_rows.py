"""Tests of files without rows, rows without classes, and too few rows. Each is refused with advice in one line."""

import numpy as np
import pandas as pd
import pytest
from datasets import ClassLabel, Dataset, DatasetDict, Features, Value
from helpers.task_rows import own_task

from w2s_hf import TASKS, Task, load_task
from w2s_hf.tasks import PREFERENCE_TASKS, find_task, load_pairs
from w2s_hf.tasks.chess import CHESS_PUZZLES, load_puzzles


def load_texts(path):
    return load_task(TASKS["sst2"], dataset_path=path)


def load_puzzles_of(path):
    return load_puzzles(CHESS_PUZZLES, dataset_path=path, tokenizers=[], max_length=None, max_new_tokens=None)


LOADERS = [load_texts, lambda path: load_pairs(PREFERENCE_TASKS["anthropic_hh"], dataset_path=path), load_puzzles_of]

FILES = {
    "header.csv": "sentence,label\n",
    "nothing.csv": "",
    "blank.csv": "\n\n",
    "header.tsv": "sentence\tlabel\n",
    "nothing.json": "",
    "list.json": "[]",
    "nothing.jsonl": "",
    "blank.jsonl": "\n\n",
    "nothing.parquet": "",
    "folder/train.csv": "sentence,label\n",
    "folder/train.jsonl": "",
}


@pytest.mark.parametrize(
    ("name", "load"),
    [
        *((name, load_texts) for name in (*FILES, "empty.parquet")),
        *((name, load) for name in ("header.csv", "nothing.jsonl") for load in LOADERS[1:]),
    ],
)
def test_a_file_without_rows_says_so(name, load, tmp_path):
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    if name == "empty.parquet":
        pd.DataFrame({"sentence": pd.Series([], dtype=str)}).to_parquet(path)
    else:
        path.write_text(FILES[name])
    path = path if path.parent == tmp_path else path.parent
    with pytest.raises(ValueError, match=f"--dataset_path: got '{path}', which has no rows, .* Add rows") as error:
        load(str(path))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("ragged.csv", b"sentence,label\na,1\nb,0,3,4\n", r"which cannot be read \(ParserError: .*line 3.*Correct"),
        ("latin.csv", "sentence,label\ncaf\u00e9,1\n".encode("latin-1"), "which is not UTF-8 .* Save it as UTF-8"),
        ("bad.json", b'{"sentence": "a", ', "which cannot be read"),
        ("scalar.json", b"3", "which cannot be read"),
        ("bad.parquet", b"PAR1xx", "which cannot be read"),
        ("folder/code.py", b"x = 1", "a directory without data files, expected files such as train.csv"),
        ("folder/folder.py", b"x = 1", "a directory without data files, expected files such as train.csv"),
    ],
)
def test_a_malformed_file_says_what_is_wrong(name, content, message, tmp_path):
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(content)
    with pytest.raises(ValueError, match=message) as error:
        load_texts(str(path if path.parent == tmp_path else path.parent))
    assert "\n" not in str(error.value)


def test_a_dataset_saved_without_splits_is_the_training_split(tmp_path):
    Dataset.from_list([{"message": f"w{i}", "is_spam": i % 2} for i in range(60)]).save_to_disk(tmp_path / "saved")
    assert len(load_task(own_task(), dataset_path=str(tmp_path / "saved")).test)


def labelled(values: list, feature=None) -> DatasetDict:
    rows = {"message": [f"w{i} x" for i in range(60)], "is_spam": [values[i % len(values)] for i in range(60)]}
    features = None if feature is None else Features({"message": Value("string"), "is_spam": feature})
    return DatasetDict(train=Dataset.from_dict(rows, features=features))


@pytest.mark.parametrize(
    ("values", "feature", "message"),
    [
        (
            [0, 1, 2],
            None,
            r"label 2.*holds 0, 1, 2, but tasks are binary.*lambda row: row\['is_spam'\] in \(2,\)",
        ),
        (["a", "b", "c"], None, r"holds 'a', 'b', 'c', but tasks are binary.*reads='is_spam'"),
        ([0, 1, 2], ClassLabel(names=["a", "b", "c"]), "but tasks are binary"),
        ([1, 2], None, "holds 1, 2, but tasks are binary"),
        (["good", "bad"], None, r"has these two values: set class_names=\('bad', 'good'\), with class 1 last"),
        ([[0], [1]], None, r"label \[0\].*tasks are binary"),
        ([1], None, "are all 'spam', expected both classes. Add rows of the other class"),
        ([0, 1, None], None, "row 2 .* has no 'is_spam'.*drop_empty"),
        ([0, 1, np.nan], None, "row 2 .* has no 'is_spam'.*drop_empty"),
        (["0", "1", " "], None, "row 2 .* has an empty 'is_spam'.*drop_empty"),
    ],
)
def test_labels_that_are_not_two_classes_say_what_to_do(values, feature, message):
    with pytest.raises(ValueError, match=message):
        load_task(own_task(), raw=labelled(values, feature))


def test_labels_that_pandas_wrote_with_a_missing_one_are_read(tmp_path):
    rows = pd.DataFrame(
        {"message": [f"w{i}" for i in range(61)], "is_spam": [float(i % 2) for i in range(60)] + [None]}
    )
    rows.to_csv(tmp_path / "rows.csv", index=False)
    with pytest.raises(ValueError, match="row 60 .* has an empty 'is_spam'"):
        load_task(own_task(), dataset_path=str(tmp_path / "rows.csv"))
    assert len(load_task(own_task(drop_empty=True), dataset_path=str(tmp_path / "rows.csv")).test)


@pytest.mark.parametrize("names", [("a", "b", "c"), ("a", "a"), "ab"])
def test_a_task_has_two_class_names(names):
    with pytest.raises(ValueError, match="expected two different names, because tasks are binary"):
        own_task(class_names=names)


def test_a_label_function_of_another_value_is_named():
    with pytest.raises(ValueError, match="label 2.*Correct the function `label`.*must return 0 or 1"):
        load_task(own_task(label=lambda row: 2, reads="is_spam"), raw=labelled([0, 1]))


def test_a_column_is_suggested():
    with pytest.raises(ValueError, match="has no column 'is_spam'. Got message, isspam.* Did you mean 'isspam'"):
        load_task(own_task(), raw=labelled([0, 1]).rename_column("is_spam", "isspam"))


def test_a_test_split_is_suggested():
    with pytest.raises(ValueError, match="got the splits train, expected 'test'.*With `test_split=None`, a fifth"):
        load_task(own_task(test_split="test"), raw=labelled([0, 1]))


def test_a_file_of_tasks_is_suggested(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").touch()
    with pytest.raises(ValueError, match="Did you mean 'mine.py'"):
        find_task("mine")


PAIRS = DatasetDict(train=Dataset.from_list([{"chosen": f"a {i}", "rejected": f"b {i}"} for i in range(60)]))
PAIRS["test"] = Dataset.from_list([{"chosen": f"c {i}", "rejected": f"d {i}"} for i in range(60)])


@pytest.mark.parametrize("kind", ["texts", "pairs"])
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n_train": 500}, "got --n_train 500, --n_weak 500, --n_validation 100, 1100 training rows in total, expec"),
        ({"n_weak": 500, "n_train": 4}, r"got --n_train 4, --n_weak 500.*Set --n_weak \d\d and"),
        ({"n_validation": 500}, "got --n_validation 500, 500 training rows in total, expected at most"),
        ({"n_test": 500}, "--n_test: got 500 rows for `test`, expected at most .* Set a smaller --n_test"),
        ({"n_train": 1}, "--n_train: got 1, expected at least 2 rows, one of each class"),
        ({"n_validation": 1}, "--n_validation: got 1, expected at least 4 rows, two in each of its two parts"),
        ({"n_train": 14, "n_links": 3}, "--n_train: got .* rows for the 6 parts of the chain's links, expected at mo"),
        ({"n_test": 1}, "the split `test` .* Use more rows \\(--n_test\\)"),
    ],
)
def test_numbers_of_rows_name_their_option_and_what_there_is(options, message, kind):
    texts = Task("t", "rows.csv", "{message}", label="is_spam", test_split=None)
    with pytest.raises(ValueError, match=message) as error:
        if kind == "texts":
            load_task(texts, raw=labelled([0, 1]), **options)
        else:
            load_pairs(PREFERENCE_TASKS["anthropic_hh"], raw=PAIRS, **options)
    if "Set --n_train " in str(error.value) and kind == "texts" and "n_weak" not in options:
        n_train = int(str(error.value).split("--n_train ")[-1].split()[0])  # the recommended number of rows
        assert len(load_task(texts, raw=labelled([0, 1]), n_train=n_train).student_half) == n_train
