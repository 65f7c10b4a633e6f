"""Tests of custom tasks: files, invalid rows, and errors that name the problem."""

import dataclasses

import pytest
from datasets import ClassLabel, Dataset, DatasetDict, Features, Value
from helpers.task_rows import MESSAGES, check, own_task

from w2s_hf import TASKS, Task, load_task
from w2s_hf.demo.rows import demo_rows
from w2s_hf.experiments.config import ClassificationArguments
from w2s_hf.experiments.finetuner import Finetuner
from w2s_hf.experiments.settings.classification import CLASSIFICATION
from w2s_hf.tasks import GenerationTask, find_task
from w2s_hf.tasks.loading import load_raw
from w2s_hf.tasks.texts import CONVERSIONS


@pytest.mark.parametrize("suffix", ["csv", "tsv", "jsonl", "parquet"])
def test_a_task_of_ones_own_from_a_file(suffix, tmp_path):
    rows, path = Dataset.from_list(MESSAGES), str(tmp_path / f"messages.{suffix}")
    if suffix == "tsv":
        rows.to_csv(path, sep="\t")
    else:
        {"csv": rows.to_csv, "jsonl": rows.to_json, "parquet": rows.to_parquet}[suffix](path)
    splits = load_task(own_task(sources=path))
    check(splits)
    assert splits.source == {"id": f"messages.{suffix}", "revision": "local"}
    # A fifth of all groups is held out, and then both classes are balanced.
    assert 20 < len(splits.test) < 50
    truth = {row["message"]: row["is_spam"] == "spam" for row in MESSAGES}
    for text, label in zip(splits.test["text"], splits.test["ground_truth"], strict=True):
        assert truth[text.removeprefix("Message: ")] == label


def test_a_task_of_ones_own_from_the_hub(monkeypatch):
    monkeypatch.setattr("w2s_hf.tasks.loading.ensure_available", lambda *args, **kwargs: "c0ffee")
    monkeypatch.setattr(
        "w2s_hf.tasks.loading.load_dataset", lambda *args, **kwargs: DatasetDict(train=Dataset.from_list(MESSAGES))
    )
    assert load_task(own_task(sources="me/messages")).source == {"id": "me/messages", "revision": "c0ffee"}


def test_the_command_line_knows_the_conversions():
    (field,) = [field for field in dataclasses.fields(ClassificationArguments) if field.name == "conversion"]
    assert tuple(field.metadata["choices"]) == CONVERSIONS


def test_tasks_in_a_python_file(tmp_path):
    (tmp_path / "neighbour_of_mine.py").write_text("FIELD = '{x}'\n")
    path = tmp_path / "mine.py"
    one = "from w2s_hf import Task\nA = Task('a', 'a.csv', '{x}', label='y')\n"
    one = "from neighbour_of_mine import FIELD\n" + one
    path.write_text(one)
    assert find_task(str(path)).name == "a"
    path.write_text(one + "B = Task('b', 'b.csv', '{x}', label='y')\n")
    assert find_task(f"{path}:B").name == "b"


TWO = "from w2s_hf import Task\nA, B = (Task(name, 'a.csv', '{x}', label='y') for name in 'ab')\n"


@pytest.mark.parametrize(
    ("content", "name", "kind", "error", "message"),
    [
        (TWO, "mine.py", Task, ValueError, "defines A, B, expected one task. Add the name of a task: `.*mine.py:A`"),
        (TWO, "mine.py:C", Task, ValueError, "defines A, B, expected a task 'C'. Add the name of a task: `.*:A`"),
        ("x = 1\n", "mine.py", Task, ValueError, r"defines no w2s_hf\.Task, expected one task. Define one"),
        ("x = 1\n", "mine.py", GenerationTask, ValueError, r"defines no w2s_hf\.tasks\.GenerationTask,"),
        (TWO, "nowhere.py", Task, FileNotFoundError, "expected an existing file"),
        ("x = 1\ndef f(:\n", "mine.py", Task, ValueError, "which fails in line 2 with SyntaxError: invalid syntax. "),
        ("x = 1\nimport nowhere\n", "mine.py", Task, ValueError, "in line 2 with ModuleNotFoundError: No module"),
        ("raise KeyError", "mine.py", Task, ValueError, "in line 1 with KeyError. Run `python .*mine.py`"),
    ],
    ids=["two", "unknown name", "none", "no generative task", "no file", "syntax", "import", "exception"],
)
def test_a_file_without_the_task_says_what_it_has(content, name, kind, error, message, tmp_path):
    (tmp_path / "mine.py").write_text(content)
    with pytest.raises(error, match=message):
        find_task(str(tmp_path / name), kind)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"template": "{message} {is_spam}"}, "shows the column 'is_spam', which is the label"),
        ({"label": None}, "expected either `label`, or `choices` and `correct`"),
        ({"choices": lambda row: []}, "expected either `label`, or `choices` and `correct`"),
        ({"label": None, "choices": len, "correct": len}, "shows no {answer}"),
        ({"context": "text"}, "context: got 'text', expected a field that the template shows once: message"),
        ({"shorten_from": "middle"}, "shorten_from: got 'middle'"),
        ({"template": "Hi {}"}, "template: got 'Hi {}', expected columns or fields in plain braces"),
        ({"template": "Hi {message!r}"}, "in plain braces"),
        ({"template": "Hi"}, "in plain braces"),
        (
            {
                "label": None,
                "choices": len,
                "correct": len,
                "template": "{answer}",
                "question": "message",
                "context": None,
            },
            "A row with `choices` is a question",
        ),
    ],
)
def test_a_task_that_does_not_fit_together_says_so(changes, message):
    with pytest.raises(ValueError, match=message):
        own_task(**changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"message": "  "}, "row 7 of the split 'train' has an empty 'message'.*drop_empty=True.*--drop_empty"),
        ({"message": None}, "row 7 of the split 'train' has no 'message'.*--drop_empty"),
        ({"is_spam": "2"}, "row 7 .* has the label '2'"),
        ({"is_spam": "maybe"}, r"row 7 .* has the label 'maybe', expected 0 or 1, or 'ham' or 'spam' \(`class_names`"),
    ],
)
def test_a_broken_row_is_named(changes, message):
    rows = [{**row, **(changes if i == 7 else {})} for i, row in enumerate(MESSAGES)]
    features = Features({"message": Value("string"), "is_spam": Value("string")})
    raw = DatasetDict(train=Dataset.from_list(rows, features=features, split="train"))
    with pytest.raises(ValueError, match=message):
        load_task(own_task(), raw=raw)


def test_rows_with_an_empty_field_are_left_out_where_the_task_says_so(caplog):
    rows = Dataset.from_list([{**MESSAGES[0], "message": ""}, *MESSAGES])
    splits = load_task(own_task(drop_empty=True), raw=DatasetDict(train=rows))
    assert splits.fingerprint == load_task(own_task(), raw=DatasetDict(train=rows.select(range(1, 241)))).fingerprint
    assert "1 of 241 rows of 'train' have an empty field and are left out" in caplog.text


def test_an_empty_cell_of_a_csv_is_empty_and_na_is_text(tmp_path):
    path = tmp_path / "messages.csv"
    lines = [f"{i} {row['message']},{int(row['is_spam'] == 'spam')}" for i, row in enumerate(MESSAGES)]
    path.write_text("\n".join(["message,is_spam", ",0", "NA,1", "None,0", *lines]))
    with pytest.raises(ValueError, match="row 0 of the split 'train' has an empty 'message'"):
        load_task(own_task(sources=str(path)))
    splits = load_task(own_task(sources=str(path), drop_empty=True))
    texts = {text for part in splits.parts.values() for text in part["text"]}
    assert {"Message: NA", "Message: None"} & texts and not {"Message: nan", "Message: "} & texts


def test_a_quotation_mark_in_a_tsv_swallows_no_lines(tmp_path):
    path = tmp_path / "messages.tsv"
    lines = [f"{chr(34) * (i % 50 == 0)}{i} {row['message']}\t{row['is_spam']}" for i, row in enumerate(MESSAGES)]
    path.write_text("\n".join(["message\tis_spam", *lines]))
    rows = load_raw(own_task(sources=str(path)))[0]["train"]
    assert len(rows) == len(MESSAGES) and rows[50]["message"].startswith('"50 ')


def test_a_folder_of_save_to_disk_is_read(tmp_path):
    DatasetDict(train=Dataset.from_list(MESSAGES)).save_to_disk(str(tmp_path / "saved"))
    assert len(load_task(own_task(), dataset_path=str(tmp_path / "saved")).test) > 20


def test_a_broken_file_is_named(tmp_path):
    (tmp_path / "broken.jsonl").write_text('{"message": "a", "is_sp')
    with pytest.raises(ValueError, match="--dataset_path: got '.*broken.jsonl', which cannot be read "):
        load_task(own_task(), dataset_path=str(tmp_path / "broken.jsonl"))


def test_a_source_that_is_no_file_is_named():
    with pytest.raises(FileNotFoundError, match="`sources` of the task: got 'messages.csv', which does not exist"):
        load_task(own_task())


@pytest.mark.parametrize(
    ("task", "row", "name"),
    [
        (TASKS["quail"], {"context": "a", "question": "b", "answers": ["c", None], "correct_answer_id": 0}, "answer"),
        (own_task(template="{f}", context="f", fields={"f": lambda row: None}), MESSAGES[0], "f"),
        (own_task(template="{f}", context="f", fields={"f": lambda row: float("nan")}), MESSAGES[0], "f"),
    ],
    ids=["no answer", "none", "nan"],
)
def test_missing_values_are_never_shown(task, row, name):
    with pytest.raises(ValueError, match=f"has no '{name}'"):
        list(task.examples(row))


def test_columns_of_a_group_are_compared_with_themselves(world):
    rows = [{"user": i, "doc": i + 1, "text": f"w{i} x", "y": i % 2} for i in range(60)]
    apart = Task("t", "rows.csv", "{text}", label="y", group=("user", "doc"), test_split=None)
    splits = load_task(apart, raw=DatasetDict(train=Dataset.from_list(rows)))
    assert len({group for part in splits.parts.values() for group in part["group"]}) > 20
    together = dataclasses.replace(apart, group=(("user", "doc"),))
    assert together.columns == apart.columns == ("text", "user", "doc", "y")
    with pytest.raises(ValueError, match="got 0 rows for `"):  # all rows are in one chain of groups
        load_task(together, raw=DatasetDict(train=Dataset.from_list(rows)))


def test_a_question_is_a_group():
    rows = [{"page": str(i), "question": f"q{i // 4}", "answer": f"a{i}", "y": i % 2} for i in range(200)]
    task = Task("t", "rows.csv", "{question} {answer}", label="y", group="page", question="question", test_split=None)
    check(load_task(task, raw=DatasetDict(train=Dataset.from_list(rows))))


def test_texts_with_both_labels_are_left_out(caplog):
    caplog.set_level("INFO", logger="w2s_hf")
    rows = [*MESSAGES, {"message": MESSAGES[0]["message"].upper(), "is_spam": "spam"}]
    assert MESSAGES[0]["is_spam"] == "ham"
    splits = load_task(own_task(), raw=DatasetDict(train=Dataset.from_list(rows)))
    texts = {text.casefold() for part in splits.parts.values() for text in part["text"]}
    assert f"message: {MESSAGES[0]['message']}" not in texts
    assert "dropped 2 of 241 loaded texts: 2 occur with several labels" in caplog.text


def test_of_a_huge_split_random_rows_are_read(monkeypatch, caplog):
    monkeypatch.setattr("w2s_hf.tasks.halves.MAX_ROWS", 150)
    raw = DatasetDict(train=Dataset.from_list(MESSAGES))
    splits = load_task(own_task(), raw=raw)
    assert 100 < sum(map(len, splits.parts.values())) <= 150
    assert "reading a random sample of 150 of the 240 rows of 'train'" in caplog.text
    # Errors number rows within the split, not within the rows that are read.
    broken = Dataset.from_list([{**row, "message": ""} if i >= 200 else row for i, row in enumerate(MESSAGES)])
    with pytest.raises(ValueError, match="row 20[0-9] of the split 'train' has an empty 'message'"):
        load_task(own_task(), raw=DatasetDict(train=broken))


def test_classes_named_the_other_way_round_are_refused():
    features = Features({"message": Value("string"), "is_spam": ClassLabel(names=["spam", "ham"])})
    rows = Dataset.from_list([{**row, "is_spam": int(row["is_spam"] == "ham")} for row in MESSAGES], features=features)
    with pytest.raises(ValueError, match="got the class names .'spam', 'ham'. in the column 'is_spam', .*Swap"):
        load_task(own_task(), raw=DatasetDict(train=rows))
    assert load_task(own_task(class_names=("spam", "ham")), raw=DatasetDict(train=rows)).fingerprint


def test_another_context_is_another_fingerprint():
    row = {"p": "w1 w2", "q": "w3", "y": 0}
    raw = DatasetDict(train=Dataset.from_list([{**row, "p": f"w1 {i}", "y": i % 2} for i in range(60)]))
    settings = ({"context": "p"}, {"context": "q"}, {"context": "p", "shorten_from": "start"}, {})
    tasks = [Task("t", "rows.csv", "{p}\n{q}", label="y", test_split=None, **setting) for setting in settings]
    every = [load_task(task, raw=raw) for task in tasks]
    assert len({splits.fingerprint for splits in every}) == 4
    finetuner = Finetuner(None, CLASSIFICATION, None)
    assert len({finetuner.fingerprint(splits.student_half, with_labels=False) for splits in every}) == 4


DIALOGUE = {"dialogue": ["a"], "question": "b", "choice": ["c", "d"], "answer": "e"}


def test_an_answer_that_is_none_of_the_choices_is_named():
    raw = DatasetDict(train=Dataset.from_list([DIALOGUE], split="train"), test=Dataset.from_list([DIALOGUE]))
    message = "row 0 of the split 'train' has the right answer 'e', expected one of 'c', 'd'"
    with pytest.raises(ValueError, match=message):
        load_task(TASKS["dream"], raw=raw)


@pytest.mark.parametrize(
    ("task", "row", "message"),
    [
        (
            dataclasses.replace(TASKS["dream"], correct=lambda row: "1"), DIALOGUE,
            "has '1' as the position of the right choice, expected an integer",
        ),
        (
            dataclasses.replace(TASKS["dream"], correct=lambda row: 4), DIALOGUE,
            "has 2 choices and 4 as the position of the right choice",
        ),
        (
            TASKS["anli_r2"], {"premise": "a", "hypothesis": "b", "label": -1},
            "has the label -1, expected one of 0, 1, 2, 'entailment'",
        ),
        (
            Task("t", "rows.csv", "{x}", label="y"), {"x": ["a"], "y": 0},
            "has a list in 'x', expected text. Convert it in `fields`",
        ),
    ],
    ids=["a choice that is no number", "a choice too many", "an unknown label", "a list"],
)  # fmt: skip
def test_rows_that_make_no_example_are_named(task, row, message):
    with pytest.raises(ValueError, match=message):
        list(task.examples(row))


def test_a_column_that_only_a_function_reads_has_to_be_named():
    rows = DatasetDict(train=Dataset.from_list(MESSAGES))
    task = own_task(label=lambda row: row["is_spam"] == "spam")
    with pytest.raises(
        ValueError,
        match="row 0 of the split 'train': a function of the task fails with KeyError: 'is_spam'.*in `reads`",
    ):
        load_task(task, raw=rows)
    task = dataclasses.replace(task, reads=("is_spam",))
    assert load_task(task, raw=rows).test["ground_truth"]


def test_the_demo_has_rows_for_its_own_tasks_only(world):
    with pytest.raises(ValueError, match="Got the task spam, for which the demo has no rows. Set --weak_model and"):
        demo_rows(own_task(), world, 10, "train")
