"""Tests that trainers support torch.compile and streams of tokens, and refuse Liger and streams of text."""

from types import SimpleNamespace

import pytest
import torch
from datasets import Dataset, IterableDataset
from helpers.models import make_character_tokenizer, make_language_model, make_rows
from helpers.training import Record, arguments, completion_arguments, make_pairs, pair_arguments, reward_model, rows_of

from w2s_hf import (
    BootstrapConfig,
    BootstrapTrainer,
    CompletionConfig,
    CompletionTrainer,
    RewardPairConfig,
    RewardPairTrainer,
    WeakToStrongConfig,
    WeakToStrongTrainer,
    load_task,
)
from w2s_hf.tasks import TASKS, tokenize_rows
from w2s_hf.tokenization import shorter_contexts

TRAINERS = ["classifier", "chain", "pairs", "completions"]
CONFIGS = {
    "classifier": WeakToStrongConfig, "chain": BootstrapConfig, "pairs": RewardPairConfig,
    "completions": CompletionConfig,
}  # fmt: skip


@pytest.fixture
def trainer_of(model_of, tokenizer, tmp_path):
    """`trainer_of(kind, **arguments)`: a trainer of two steps on 16 rows of equal length, and its trajectory."""

    def make(kind: str, **options):
        options = {"max_steps": 2, **options}
        record = Record()
        if kind == "completions":
            letters = make_character_tokenizer()
            args, rows = completion_arguments(tmp_path / kind, **options), rows_of(16)
            return CompletionTrainer(
                make_language_model(letters), args, rows, None, letters, callbacks=[record]
            ), record
        if kind == "pairs":
            pairs = make_pairs(16, "random").map(lambda row: {side: (row[side] * 9)[:9] for side in SIDES})
            args = pair_arguments(tmp_path / kind, **options)
            trainer = RewardPairTrainer(
                reward_model(), args, train_dataset=pairs, processing_class=tokenizer, callbacks=[record]
            )
            return trainer, record
        rows = make_rows(16, lengths=(8, 9))
        args = arguments(tmp_path / kind, CONFIGS[kind], **options)
        common = {"args": args, "train_dataset": rows, "processing_class": tokenizer, "callbacks": [record]}
        if kind == "chain":
            return BootstrapTrainer(lambda link: model_of(), 2, **common), record
        return WeakToStrongTrainer(model_of(), **common), record

    return make


SIDES = ("chosen_ids", "rejected_ids")


# ---- torch.compile ----


@pytest.mark.slow
@pytest.mark.parametrize("kind", TRAINERS)
def test_a_compiled_model_trains_as_an_eager_one(kind, trainer_of, tmp_path):
    trajectories = []
    for options in ({}, {"torch_compile": True, "torch_compile_backend": "aot_eager"}):  # needs no C++ compiler
        trainer, record = trainer_of(kind, output_dir=str(tmp_path / str(len(options))), **options)
        trainer.train()
        trajectories.append(torch.tensor(record.trajectory))
        assert hasattr(trainer.model_wrapped, "_orig_mod") == bool(options), "compiled, or not"
    torch._dynamo.reset()
    assert len(trajectories[0]) == (4 if kind == "chain" else 2)
    torch.testing.assert_close(*trajectories, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_a_compiled_model_is_saved_under_its_own_names(trainer_of, tmp_path):
    trainer, _ = trainer_of("classifier", torch_compile_backend="aot_eager")
    trainer.train()
    trainer.save_model(str(tmp_path / "saved"))
    torch._dynamo.reset()
    student = type(trainer.model).from_pretrained(tmp_path / "saved")
    for (name, saved), trained in zip(student.named_parameters(), trainer.model.parameters(), strict=True):
        assert torch.equal(saved, trained), name


# ---- Liger ----


@pytest.mark.parametrize("kind", TRAINERS)
def test_liger_kernels_are_refused(kind, trainer_of):
    with pytest.raises(ValueError, match=r"use_liger_kernel: got True, expected False.* Remove use_liger_kernel"):
        trainer_of(kind, use_liger_kernel=True)


# ---- Streams ----

TEXTS = Dataset.from_dict({"text": [f"w{i} w{i + 1} w{2 * i}" for i in range(16)], "labels": [0.1, 0.9] * 8})


def streams() -> dict[str, Dataset | IterableDataset]:
    """Streams of text. The columns of the second stream are unknown before it is read."""
    return {
        "stream": TEXTS.to_iterable_dataset(),
        "generator": IterableDataset.from_generator(lambda: iter(TEXTS)),
        "transform": TEXTS.with_transform(lambda rows: rows),
    }


@pytest.mark.parametrize("name", streams())
def test_a_stream_of_texts_is_refused_before_the_first_step(name, model_of, tokenizer, tmp_path):
    record = Record()
    with pytest.raises(ValueError, match=r"expected `input_ids`. Tokenize the text first: rows.map\("):
        trainer = WeakToStrongTrainer(
            model_of(), arguments(tmp_path), None, streams()[name], processing_class=tokenizer, callbacks=[record]
        )
        trainer.train()
    assert not record.trajectory


def test_a_stream_of_texts_to_evaluate_is_refused(model_of, tokenizer, tmp_path):
    trainer = WeakToStrongTrainer(model_of(), arguments(tmp_path), processing_class=tokenizer)
    with pytest.raises(ValueError, match="eval_dataset: got a streamed dataset with the columns text, labels"):
        trainer.evaluate(streams()["stream"])


def test_streams_of_tokens_train_as_rows_do(model_of, tokenizer, tmp_path):
    rows = TEXTS.map(lambda row: tokenizer(row["text"]))
    trajectories = []
    for train_dataset in (rows.to_iterable_dataset(), streams()["generator"].map(lambda row: tokenizer(row["text"]))):
        record = Record()
        args = arguments(tmp_path, max_steps=2)
        trainer = WeakToStrongTrainer(
            model_of(), args, None, train_dataset, processing_class=tokenizer, callbacks=[record]
        )
        trainer.train()
        trajectories.append(record.trajectory)
    assert trajectories[0] == trajectories[1] and len(trajectories[0]) == 2


def test_streams_of_texts_that_a_collator_tokenizes_are_read(model_of, tokenizer, tmp_path):
    def collate(rows: list[dict]) -> dict:
        batch = tokenizer([row["text"] for row in rows], padding=True, return_tensors="pt")
        return {**batch, "labels": torch.tensor([row["labels"] for row in rows])}

    args = arguments(tmp_path, max_steps=2, remove_unused_columns=False)
    trainer = WeakToStrongTrainer(model_of(), args, collate, streams()["stream"], processing_class=tokenizer)
    assert trainer.train().global_step == 2


def test_streams_of_pairs_of_text_are_tokenized_by_trl(tokenizer, tmp_path):
    pairs = Dataset.from_dict(
        {"chosen": ["w1 w2", "w3"] * 8, "rejected": ["w4", "w5 w6"] * 8, "soft_label": [0.7] * 16}
    )
    args = pair_arguments(tmp_path, max_steps=2)
    stream = pairs.to_iterable_dataset()
    trainer = RewardPairTrainer(reward_model(), args, train_dataset=stream, processing_class=tokenizer)
    assert trainer.train().global_step == 2


# ---- Rows of load_task ----

MAX_LENGTH = 24


@pytest.fixture
def long_rows():
    """Rows of BoolQ, most of whose passages do not fit into `MAX_LENGTH` tokens, with `labels`."""
    from datasets import DatasetDict

    rows = Dataset.from_list([
        {
            "passage": " ".join(f"w{(row * 7 + word) % 60}" for word in range(3 + 5 * row)),
            "question": f"w{row} w{row + 1} w{row + 2}",
            "answer": row % 2 == 1,
        }
        for row in range(16)
    ])  # fmt: skip
    task = load_task(TASKS["boolq"], raw=DatasetDict(train=rows, validation=rows.select(range(2))), n_validation=4)
    return task.student_half.rename_column("ground_truth", "labels")


def test_rows_of_a_task_have_the_tokens_that_they_have_in_recipes(long_rows, model_of, tokenizer, tmp_path, caplog):
    args = arguments(tmp_path, max_length=MAX_LENGTH)
    trainer = WeakToStrongTrainer(
        model_of(), args, train_dataset=long_rows, eval_dataset=long_rows, processing_class=tokenizer
    )
    expected = tokenize_rows(long_rows, tokenizer, MAX_LENGTH)["input_ids"][:]
    lengths = [len(ids) for ids in tokenizer(long_rows["text"][:])["input_ids"]]
    assert max(lengths) > MAX_LENGTH and len(expected) > 3
    for row, ids in enumerate(expected):
        assert trainer.train_dataset["input_ids"][row] == ids and trainer.eval_dataset["input_ids"][row] == ids
        question = long_rows["text"][row].rpartition("\n")[2]
        assert tokenizer.decode(ids).endswith(question.rpartition(": ")[2]), "the question is cut"
    assert "does not use" not in caplog.text and "truncated" not in caplog.text
    tokens = Dataset.from_dict({"input_ids": expected})
    unlabelled = long_rows.remove_columns("labels")
    assert (trainer.predict_proba(unlabelled) == trainer.predict_proba(tokens)).all()


def test_rows_of_a_task_in_another_text_column_are_truncated(long_rows, model_of, tokenizer, tmp_path):
    """The positions of the context refer to `text`, and are ignored for another column."""
    rows = long_rows.rename_column("text", "sentence")
    args = arguments(tmp_path, max_length=MAX_LENGTH, dataset_text_field="sentence")
    trainer = WeakToStrongTrainer(model_of(), args, train_dataset=rows, processing_class=tokenizer)
    expected = tokenizer(rows["sentence"][:], truncation=True, max_length=MAX_LENGTH)["input_ids"]
    assert trainer.train_dataset["input_ids"][:] == expected


def test_a_question_of_a_task_that_does_not_fit_is_refused(long_rows, model_of, tokenizer, tmp_path):
    with pytest.raises(ValueError, match=r"without its context, expected at most max_length=4. Raise max_length"):
        WeakToStrongTrainer(
            model_of(), arguments(tmp_path, max_length=4), train_dataset=long_rows, processing_class=tokenizer
        )


def test_a_slow_tokenizer_is_refused_where_a_context_is_shortened():
    with pytest.raises(ValueError, match="a slow tokenizer, and a text that is too long, expected a fast tokenizer"):
        next(shorter_contexts(SimpleNamespace(is_fast=False), "a long context", 2, "end"))
