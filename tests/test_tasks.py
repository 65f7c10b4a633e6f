"""Tests of all tasks with generated and real rows: texts, truncation, errors and custom tasks."""

import copy
import dataclasses
import logging
from collections import Counter, defaultdict

import numpy as np
import pytest
from datasets import ClassLabel, Dataset, DatasetDict, Value, load_dataset
from helpers.task_rows import check, real
from transformers import AutoTokenizer

from w2s_hf import TASKS, Task, load_task
from w2s_hf.demo.rows import demo_rows
from w2s_hf.demo.worlds import DemoWorld
from w2s_hf.tasks import Source, find_task, task_table, tokenize_rows
from w2s_hf.tasks.loading import load_raw
from w2s_hf.tasks.task import PARQUET_BRANCH
from w2s_hf.tasks.texts import choose_answers

PAPER = """boolq cosmos_qa dream ethics_justice ethics_deontology ethics_virtue ethics_utilitarianism anli_r2 cola sst2
hellaswag mc_taco openbookqa paws quail piqa quartz sciq social_i_qa multirc wic twitter_sentiment""".split()
PUBLISHED_CODE = ["sciq_with_support", "amazon_polarity", "anthropic_hh_single"]


def generated(task: Task, world: DemoWorld, n_train: int = 900, n_test: int = 300) -> DatasetDict:
    rows = {task.train_split[0]: demo_rows(task, world, n_train, "train")}
    return DatasetDict(rows | {task.test_split[0]: demo_rows(task, world, n_test, "test")})


def check_shortening(splits, tokenizer, max_length):
    """Checks that only the context is truncated, and everything before and after it is complete."""
    n_shortened = 0
    for part in splits.parts.values():
        rows = part.select(range(min(len(part), 100)))
        for row in tokenize_rows(rows, tokenizer, max_length):
            text = tokenizer.decode(row["input_ids"], skip_special_tokens=True)
            before, after = row["text"][: row["context_start"]], row["text"][row["context_end"] :]
            context = row["text"][row["context_start"] : row["context_end"]]
            assert len(row["input_ids"]) <= max_length
            assert text.startswith(before) and text.endswith(after)
            excerpt = text[len(before) : len(text) - len(after)]
            if excerpt != context:
                n_shortened += 1
                assert len(excerpt) < len(context)
                assert context.startswith(excerpt) if splits.task.shorten_from == "end" else context.endswith(excerpt)
    return n_shortened


def test_the_tasks_of_the_paper_and_of_the_published_code_are_there():
    assert len(PAPER) == 22 and set(TASKS) == {*PAPER, *PUBLISHED_CODE}
    assert all(name == task.name and task.description for name, task in TASKS.items())
    assert all(name in task_table() for name in TASKS)


@pytest.mark.parametrize("name", TASKS)
def test_generated_rows(name, world):
    task = TASKS[name]
    raw = generated(task, world)
    splits = load_task(name, raw=raw)
    check(splits)
    # The text and the split of a row do not depend on the order of the rows.
    shuffled = DatasetDict({split: rows.shuffle(seed=1) for split, rows in raw.items()})
    again = load_task(name, raw=shuffled)
    assert again.fingerprint == splits.fingerprint
    assert again.student_half["group"][:] == splits.student_half["group"][:]
    assert load_task(name, raw=raw, seed=1).fingerprint != splits.fingerprint
    tokenizer = world.tokenizer()
    assert max(map(len, tokenizer(splits.student_half["text"][:])["input_ids"])) <= tokenizer.model_max_length


@pytest.mark.parametrize("name", TASKS)
def test_generated_labels_are_true_in_the_world_they_are_about(name, world):
    task = TASKS[name]
    is_alive = dict(zip(world.entities, world.is_alive.tolist(), strict=True))
    for row in demo_rows(task, world, 200, "train"):
        for example in task.examples(row):
            truth = is_alive[example["text"].split()[-2]]
            assert example["ground_truth"] == (not truth if name == "ethics_utilitarianism" else truth)


# Synthetic rows with the label encoding of each dataset, their texts, and the correct ones.
CHOICES = {"text": ["c", "d", "e"], "label": ["A", "B", "C"]}
HAND_WORKED = {
    "boolq": ({"passage": "a", "question": "b", "answer": True}, {"a\nQuestion: b": 1}),
    "anli_r2": ({"premise": "a", "hypothesis": "b", "label": 0}, {"a\nHypothesis: b": 1}),
    "sst2": ({"sentence": "a b ", "label": 1}, {"a b": 1}),
    "ethics_virtue": ({"scenario": "a [SEP] b", "label": 1}, {"a\nTrait: b": 1}),
    "ethics_deontology": ({"scenario": "a", "excuse": "b", "label": 0}, {"a\nReply: b": 0}),
    "cosmos_qa": (
        {"context": "a", "question": "b", "answer0": "c", "answer1": "d", "answer2": "e", "answer3": "f", "label": 3},
        {f"a\nQuestion: b\nAnswer: {x}": int(x == "f") for x in "cdef"},
    ),
    "dream": (
        {"dialogue": ["M: a", "W: b"], "question": "q", "choice": ["c", "d", "e"], "answer": "d"},
        {f"M: a\nW: b\nQuestion: q\nAnswer: {x}": int(x == "d") for x in "cde"},
    ),
    "hellaswag": (
        {"ctx": "a b", "endings": ["c", "d", "e", "f"], "label": "2"}, {f"a b {x}": int(x == "e") for x in "cdef"}
    ),
    "openbookqa": (
        {"question_stem": "a", "choices": CHOICES, "answerKey": "C"},
        {f"Question: a\nAnswer: {x}": int(x == "e") for x in "cde"},
    ),
    "quartz": (
        {"para": "a", "question": "b", "choices": CHOICES, "answerKey": "B"},
        {f"a\nQuestion: b\nAnswer: {x}": int(x == "d") for x in "cde"},
    ),
    "piqa": (
        {"goal": "a", "sol1": "c", "sol2": "d", "label": 0}, {f"Goal: a\nSolution: {x}": int(x == "c") for x in "cd"}
    ),
    "quail": (
        {"context": "a", "question": "b", "answers": ["c", "d"], "correct_answer_id": 1},
        {f"a\nQuestion: b\nAnswer: {x}": int(x == "d") for x in "cd"},
    ),
    "sciq": (
        {"question": "a", "correct_answer": "c", "distractor1": "d", "distractor2": "e", "distractor3": "f"},
        {f"Question: a\nAnswer: {x}": int(x == "c") for x in "cdef"},
    ),
    "social_i_qa": (
        {"context": "a", "question": "b", "answerA": "c", "answerB": "d", "answerC": "e", "label": "1"},
        {f"a\nQuestion: b\nAnswer: {x}": int(x == "c") for x in "cde"},
    ),
    "multirc": ({"paragraph": "a", "question": "b", "answer": "c", "label": 1}, {"a\nQuestion: b\nAnswer: c": 1}),
    "cola": ({"sentence": "a b", "label": 0}, {"a b": 0}),
    "twitter_sentiment": ({"text": "a b", "label": 1}, {"a b": 1}),
    "amazon_polarity": ({"title": "a", "content": "b", "label": 0}, {"a\nb": 0}),
    "ethics_justice": ({"scenario": "a", "label": 1}, {"Is this reasonable?\na": 1}),
    "paws": ({"sentence1": "a", "sentence2": "b", "label": 1}, {"Do both sentences mean the same?\na\nb": 1}),
    "mc_taco": ({"sentence": "a", "question": "b", "answer": "c", "label": 0}, {"a\nQuestion: b\nAnswer: c": 0}),
    "sciq_with_support": (
        {
            "support": "s", "question": "a", "correct_answer": "c", "distractor1": "d", "distractor2": "e",
            "distractor3": "f",
        },
        {f"s\nQuestion: a\nAnswer: {x}": int(x == "c") for x in "cdef"},
    ),
    "anthropic_hh_single": (
        {"chosen": "\n\nHuman: a\n\nAssistant: b", "rejected": "\n\nHuman: a\n\nAssistant: c"},
        {f"Human: a\n\nAssistant: {x}": int(x == "b") for x in "bc"},
    ),
    "wic": (
        {"word": "a", "sentence1": "b", "sentence2": "c", "label": 1},
        {'Has "a" the same sense in both sentences?\nb\nc': 1},
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", HAND_WORKED)
def test_hand_worked_rows(name):
    row, expected = HAND_WORKED[name]
    examples = list(TASKS[name].examples({**row, "a column": "that no task reads"}))
    assert {example["text"]: example["ground_truth"] for example in examples} == expected
    assert len({example["id"] for example in examples}) == len(expected)


@pytest.mark.slow
@pytest.mark.real_data
@pytest.mark.parametrize("name", TASKS)
def test_real_rows(name):
    path = real(name)
    splits = load_task(name, dataset_path=path)
    check(splits)
    # The text and the split of a row do not depend on the order of the rows, which a sample shows in less time.
    raw = {
        split: rows.shuffle(seed=0).select(range(min(len(rows), 1200))) for split, rows in load_dataset(path).items()
    }
    shuffled = {split: rows.shuffle(seed=1) for split, rows in raw.items()}
    in_order, again = (load_task(name, raw=DatasetDict(rows)) for rows in (raw, shuffled))
    assert in_order.fingerprint == again.fingerprint
    if name == "sst2":  # a directory and rows in memory are read in different ways
        assert load_task(name, raw=load_dataset(path)).fingerprint == splits.fingerprint
    tokenizer = AutoTokenizer.from_pretrained(real("tokenizers/gpt2"))
    n_shortened = check_shortening(splits, tokenizer, 256)
    if name in ("quail", "dream", "multirc", "boolq"):
        assert n_shortened > 0, "no text was too long, so the test is trivial"


@pytest.mark.real_data
@pytest.mark.parametrize("name", sorted(set(TASKS) - {"paws", "quartz"}))
def test_generated_rows_have_the_schema_of_real_ones(name, world):
    task = TASKS[name]
    generated, real_rows = demo_rows(task, world, 20, "train"), load_dataset(real(name))

    def kind(feature):
        return Value("int64") if isinstance(feature, ClassLabel) else feature

    (features,) = {split: rows.features for split, rows in real_rows.items() if split in task.train_split}.values()
    for column in task.columns:
        is_int = "int" in str(generated.features[column])
        assert is_int == ("int" in str(kind(features[column]))), column
        assert str(generated.features[column]).count("List") == str(features[column]).count("List"), column


@pytest.mark.parametrize("name", ["sciq", "multirc"])
def test_a_question_becomes_a_right_and_a_wrong_row_or_one_of_either(name, world):
    raw = generated(TASKS[name], world)
    pairs, coin = (load_task(name, raw=raw, conversion=conversion) for conversion in ("pairs", "coin_flip"))
    answers = defaultdict(set)
    for question, text in zip(pairs.student_half["question"], pairs.student_half["text"], strict=True):
        answers[question].add(text)
    assert {len(texts) for texts in answers.values()} <= {2, 4}  # 4 if two questions are equal
    check(coin)
    assert not any(coin.student_half["question"]) and len(coin.student_half) < 0.6 * len(pairs.student_half)
    both = {row_id for part in coin.parts.values() for row_id in part["id"]}
    assert len(both & {row_id for part in pairs.parts.values() for row_id in part["id"]}) > 0.3 * len(both)
    with pytest.raises(ValueError, match="conversion: got 'dice', expected one of pairs, coin_flip"):
        load_task(name, raw=raw, conversion="dice")


def test_of_several_right_answers_as_many_wrong_ones_are_kept():
    rows = [
        {"paragraph": f"p{q}", "question": "which?", "answer": f"a{q} {a}", "label": int(a in right)}
        for q, right in enumerate([(0, 1), (0,), (0, 1, 2), (), (0, 1, 2, 3)] * 12)
        for a in range(4)
    ]
    raw = DatasetDict(train=Dataset.from_list(rows))
    task = dataclasses.replace(TASKS["multirc"], test_split=None)
    splits = load_task(task, raw=raw)
    per_question = Counter(q for part in splits.parts.values() for q in part["question"])
    # 2, 1 and 1 of each kind, and none if all answers are right or all are wrong.
    assert sorted(per_question.values()) == [2] * 24 + [4] * 12


@pytest.mark.parametrize("name", ["quail", "multirc"])
def test_fewer_rows_are_whole_questions_and_the_first_of_more(name, world):
    raw = generated(TASKS[name], world)
    few, more = (load_task(name, raw=raw, n_train=200, n_weak=n, n_test=n) for n in (60, 80))
    assert len(few.weak_half) == len(few.test) == 60 and set(few.test["id"]) < set(more.test["id"])
    assert set(Counter(few.test["question"]).values()) <= {2, 4}


def test_utilitarianism_shows_the_better_scenario_first_as_often_as_second(world):
    task = TASKS["ethics_utilitarianism"]
    rows = demo_rows(task, world, 1000, "train")
    truths = []
    for row in rows:
        (example,) = task.examples(row)
        first = example["text"].split("First: ")[1].split("\nSecond: ")[0]
        assert (first == row["baseline"]) == example["ground_truth"]
        truths.append(example["ground_truth"])
    assert 0.45 < np.mean(truths) < 0.55


def test_the_text_of_a_preference_ends_in_the_reply_and_is_cut_at_its_start(tokenizer):
    row = {
        "chosen": "\n\nHuman: w1 w2 w3\n\nAssistant: w4\n\nHuman: w5\n\nAssistant: w6 w7",
        "rejected": "\n\nHuman: w1 w2 w3\n\nAssistant: w4\n\nHuman: w5\n\nAssistant: w8 w9",
    }
    chosen, rejected = TASKS["anthropic_hh_single"].examples(row)
    assert (chosen["ground_truth"], rejected["ground_truth"]) == (1, 0)
    assert chosen["keys"] == rejected["keys"] == ["first_turn: human: w1 w2 w3"]
    with pytest.raises(ValueError, match="has no last reply in 'rejected'"):
        list(TASKS["anthropic_hh_single"].examples({**row, "rejected": "\n\nHuman: w1\n\nAssistant: "}))
    tokens = tokenize_rows(Dataset.from_list([{**chosen}]), tokenizer, 4)["input_ids"][0]
    assert tokenizer.decode(tokens).endswith("w6 w7") and len(tokens) == 4


@pytest.mark.parametrize("max_length", [14, 18, 40])
@pytest.mark.parametrize("side", ["start", "end"])
def test_the_context_is_shortened_never_the_question(max_length, side, tokenizer):
    words = " ".join(f"w{i}" for i in range(30))
    task = Task("t", "rows.csv", "{p}\nQuestion: {q}", label="y", context="p", shorten_from=side)
    rows = [{"p": words, "q": "w40 w41 w42", "y": 1}, {"p": "w1", "q": "w5", "y": 0}]
    rows = Dataset.from_list([example for row in rows for example in task.examples(row)])
    tokens = tokenize_rows(rows, tokenizer, max_length)["input_ids"]
    text = tokenizer.decode(tokens[0])
    assert text.endswith("w40 w41 w42") and len(tokens[0]) == min(max_length, 35)
    assert text.startswith("w0 w1") if side == "end" or max_length == 40 else " w29" in text and "w0" not in text
    assert tokens[1] == tokenizer(rows["text"][1])["input_ids"]


@pytest.mark.parametrize(("max_length", "n_lost"), [(2, 3), (3, 1), (4, 0), (None, 0)])
def test_rows_that_lose_their_context_are_counted(max_length, n_lost, tokenizer, caplog):
    task = Task("t", "rows.csv", "{p} w0 {q}", label="y", context="p")
    rows = [{"p": p, "q": q, "y": 1} for p, q in (("w1", "w3"), ("w1 w2", "w3"), ("w1", "w3"), ("w1", "w3 w5"))]
    rows = rows if max_length != 2 else rows[:3]  # the last row has three tokens without its context
    rows = Dataset.from_list([example for row in rows for example in task.examples(row)])
    tokenize_rows(rows, tokenizer, max_length)
    warnings = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert warnings == [] if n_lost == 0 else f"{n_lost} of {len(rows)} rows have no context left" in warnings[0]


def test_texts_that_are_still_to_be_shortened_are_no_alarm(tokenizer, caplog):
    task = Task("t", "rows.csv", "{p} {q}", label="y", context="p")
    rows = Dataset.from_list(list(task.examples({"p": "w1 w2 w3 w4", "q": "w5", "y": 1})))
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.model_max_length = 3
    logger = logging.getLogger("transformers")
    logger.addHandler(caplog.handler)
    try:
        alarm = "longer than the specified maximum"
        assert len(tokenize_rows(rows, tokenizer, 3)["input_ids"][0]) == 3 and alarm not in caplog.text
        tokenizer(rows["text"][0])
        assert alarm in caplog.text
    finally:
        logger.removeHandler(caplog.handler)


@pytest.mark.parametrize("context", ["p", None])
def test_a_question_that_does_not_fit_is_named(context, tokenizer):
    task = Task("t", "rows.csv", "{p} Question: {q}", label="y", context=context)
    rows = Dataset.from_list(list(task.examples({"p": "w1 w2", "q": "w3 w4 w5", "y": 1})))
    n, what = (5, "without its context") if context else (7, "and no context to shorten")
    with pytest.raises(ValueError, match=f"w3 w4 w5.*: got {n} tokens {what}, expected at most max_length=3"):
        tokenize_rows(rows, tokenizer, 3)


def test_wrong_answers_come_from_all_of_them(world):
    task = TASKS["sciq"]
    rows = demo_rows(task, world, 2000, "train")
    of_answer = {row[f"distractor{k}"]: k for row in rows for k in (1, 2, 3)}
    examples = choose_answers([example for row in rows for example in task.examples(row)])
    wrong = [example["text"].split("Answer: ")[1] for example in examples if not example["ground_truth"]]
    counts = Counter(of_answer[answer] for answer in wrong)
    assert sum(counts.values()) == 1000 and min(counts.values()) > 280


def test_an_unknown_task_is_named():
    with pytest.raises(ValueError, match="got 'bolq', expected one of amazon_polarity, .*Did you mean 'boolq'"):
        find_task("bolq")


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("nowhere", "got 'nowhere', which does not exist in the working directory; expected"),
        ("rows.jsn", r"in the working directory; .*\. Did you mean 'rows.json'\?$"),
        ("/nowhere/rows", "got '/nowhere/rows', which does not exist; expected"),
        ("other.txt", "got 'other.txt', which has another file format; expected .*csv.*columns passage, question"),
    ],
)
def test_an_unknown_file_is_named(path, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("rows.json", "other.txt"):
        (tmp_path / name).touch()
    with pytest.raises(FileNotFoundError, match=message):
        load_task("boolq", dataset_path=path)


def test_sources_are_asked_as_datasets_wants_them(monkeypatch):
    requests = []

    def load(name, config=None, **kwargs):
        requests.append((name, config, kwargs))
        columns = {"activity": ["a"], "baseline": ["b"]} if "Eleuther" in name else {"question": ["q"], "label": [1]}
        return DatasetDict(train=Dataset.from_dict(columns))

    monkeypatch.setattr("w2s_hf.tasks.loading.ensure_available", lambda *args, **kwargs: "c0ffee")
    monkeypatch.setattr("w2s_hf.tasks.loading.load_dataset", load)
    task = TASKS["ethics_utilitarianism"]
    load_raw(task)
    files = {"train": "utilitarianism/train/*.parquet", "test": "utilitarianism/test/*.parquet"}
    assert requests.pop() == ("hendrycks/ethics", None, {"data_files": files, "revision": "c0ffee"})
    # The mirror names the better scenario `activity` and the worse scenario `baseline`.
    raw, source = load_raw(dataclasses.replace(task, sources=task.sources[1:]))
    assert raw["train"][0] == {"baseline": "a", "less_pleasant": "b"} and source["revision"] == "c0ffee"
    requests.clear()
    raw, _ = load_raw(dataclasses.replace(TASKS["boolq"], sources=TASKS["boolq"].sources[1:]))
    assert (
        requests == [("aps/super_glue", "boolq", {"revision": "c0ffee"})] and raw["train"].column_names[1] == "answer"
    )


def test_every_source_that_was_a_script_names_its_folder():
    for task in TASKS.values():
        for source in task.sources:
            assert isinstance(source, Source) and source.id.count("/") == 1
            assert source.revision in (None, PARQUET_BRANCH) and (source.revision is None or source.config)
