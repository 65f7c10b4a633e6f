"""Tests WeakToStrongTrainer: equal trajectories for equal batches, and the results of Trainer for integer labels."""

import pytest
import torch
from datasets import Dataset
from helpers.models import make_rows
from helpers.training import STEPS, Record, arguments, train, with_supervisors
from peft import LoraConfig, get_peft_model
from transformers import (
    DataCollatorWithPadding,
    LlamaForSequenceClassification,
    Trainer,
    TrainingArguments,
)

from w2s_hf import WeakToStrongTrainer
from w2s_hf.losses import LOSS_ARGUMENTS, LOSS_TYPES

CUTS = {
    "8x1": {"per_device_train_batch_size": 8, "gradient_accumulation_steps": 1},
    "2x4": {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 4},
    "1x8": {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 8},
    "tokens": {"per_device_train_batch_size": 8, "max_tokens_per_micro_batch": 40},
    "4x2 tokens": {
        "per_device_train_batch_size": 4,
        "gradient_accumulation_steps": 2,
        "max_tokens_per_micro_batch": 40,
    },
}


@pytest.mark.parametrize("loss_type", LOSS_TYPES)
def test_equal_rows_a_step_give_equal_steps(loss_type, model_of, tokenizer, tmp_path):
    trajectories = {}
    rows = with_supervisors(make_rows(24)) if loss_type == "learned_supervisors" else None
    options = {"loss_type": loss_type, "aux_warmup_ratio": 0.5, "window_radius": 0.3}
    for name, cut in CUTS.items():
        # Half of the steps are warm-up, so that the auxiliary loss has a weight from the second step on.
        _, trajectories[name] = train(model_of("gpt2"), tokenizer, tmp_path, rows, **options, **cut)
    assert trajectories["8x1"].shape == (STEPS, 2)
    assert trajectories["8x1"].std(dim=0).min() > 1e-4, "every step is the same: the comparison would be vacuous"
    for name, trajectory in trajectories.items():
        torch.testing.assert_close(
            trajectory, trajectories["8x1"], rtol=2e-4, atol=2e-6, msg=lambda m, n=name: f"{n}: {m}"
        )


def test_a_loss_that_nothing_computes_is_an_error(model_of, tokenizer, tmp_path, monkeypatch):
    monkeypatch.setattr("w2s_hf.config.LOSS_TYPES", (*LOSS_TYPES, "new"))
    monkeypatch.setitem(LOSS_ARGUMENTS, "new", ())
    with pytest.raises(NotImplementedError, match="got 'new' of LOSS_TYPES, expected a loss that WholeStepLoss"):
        train(model_of(), tokenizer, tmp_path, loss_type="new")


def test_loss_is_the_mean_over_rows_where_batches_differ_in_size(model_of, tokenizer, tmp_path):
    # 6 rows in one step of batches of 4 and 2. The mean of both means would give the last rows double weight.
    _, whole = train(model_of(), tokenizer, tmp_path, make_rows(6), per_device_train_batch_size=6)
    _, parts = train(
        model_of(), tokenizer, tmp_path, make_rows(6), per_device_train_batch_size=4, gradient_accumulation_steps=2
    )
    torch.testing.assert_close(parts, whole, rtol=2e-4, atol=2e-6)


@pytest.mark.parametrize(("kind", "accumulation"), [("llama", 1), ("gpt2", 1), ("bert", 1), ("llama", 2)])
def test_xent_on_integer_labels_is_the_trainer_of_transformers(kind, accumulation, model_of, tokenizer, tmp_path):
    # Compares with whole batches of 8. With gradient accumulation, Trainer does not divide the loss of a sequence
    # classifier. The gradient at 4x2 is therefore twice the gradient at 8x1. gpt2 and bert have active dropout here.
    rows = make_rows(24, "hard")
    cut = {"per_device_train_batch_size": 8 // accumulation, "gradient_accumulation_steps": accumulation}
    kwargs = {"weight_decay": 0.1}
    ours, trajectory = train(model_of(kind), tokenizer, tmp_path / "o", rows, disable_dropout=False, **cut, **kwargs)
    record = Record()
    theirs = Trainer(
        model=model_of(kind),
        args=arguments(tmp_path / "t", TrainingArguments, **kwargs),
        train_dataset=rows.remove_columns("id"),
        data_collator=DataCollatorWithPadding(tokenizer),
        processing_class=tokenizer,
        callbacks=[record],
    )
    theirs.train()
    torch.testing.assert_close(trajectory, torch.tensor(record.trajectory), rtol=1e-4, atol=1e-6)
    for (name, ours_weight), theirs_weight in zip(
        ours.model.named_parameters(), theirs.model.parameters(), strict=True
    ):
        torch.testing.assert_close(ours_weight, theirs_weight, rtol=1e-4, atol=1e-5, msg=lambda m, n=name: f"{n}: {m}")
    assert ours.predict(rows).label_ids.tolist() == rows["labels"][:]  # metrics get integers


def test_same_seed_same_numbers(model_of, tokenizer, tmp_path):
    first, second = (train(model_of(), tokenizer, tmp_path, loss_type="confidence") for _ in range(2))
    assert torch.equal(first[1], second[1])
    for a, b in zip(first[0].model.parameters(), second[0].model.parameters(), strict=True):
        assert torch.equal(a, b)


def test_label_forms_are_equal(model_of, tokenizer, tmp_path):
    scalar = make_rows(24, "scalar")
    pairs = scalar.remove_columns("labels").add_column("labels", [[1 - p, p] for p in scalar["labels"]])
    (_, a), (_, b) = (train(model_of(), tokenizer, tmp_path, rows) for rows in (scalar, pairs))
    torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-6)


def test_three_classes(model_of, tokenizer, tmp_path):
    config = model_of().config
    config.num_labels = 3
    rows = make_rows(24, n_classes=3)
    _, trajectory = train(
        LlamaForSequenceClassification(config), tokenizer, tmp_path, rows, loss_type="adaptive_confidence"
    )
    assert trajectory.isfinite().all()
    with pytest.raises(ValueError, match="adaptive_confidence"):
        train(LlamaForSequenceClassification(config), tokenizer, tmp_path, rows, loss_type="confidence")


@pytest.mark.parametrize("sampling", ["random", "group_by_length"])
def test_prediction_keeps_row_order_whatever_the_length(sampling, model_of, tokenizer, tmp_path):
    rows = make_rows(21, labels="none")
    args = arguments(tmp_path, per_device_eval_batch_size=4, train_sampling_strategy=sampling)
    trainer = WeakToStrongTrainer(model=model_of(), args=args, processing_class=tokenizer)
    together = trainer.predict_proba(rows)
    one_by_one = torch.cat([torch.from_numpy(trainer.predict_proba(rows.select([i]))) for i in range(len(rows))])
    assert together.dtype == "float32" and together.shape == (21, 2)
    torch.testing.assert_close(torch.from_numpy(together), one_by_one, rtol=1e-4, atol=1e-5)
    assert one_by_one.std(dim=0).min() > 0.01, "all predictions are equal, so the test is trivial"


def test_text_column_is_tokenized(model_of, tokenizer, tmp_path):
    rows = Dataset.from_dict({"text": [f"w{i} w{i + 1} w{2 * i}" for i in range(16)], "labels": [0.1, 0.9] * 8})
    trainer, _ = train(model_of(), tokenizer, tmp_path, rows, max_length=2)
    assert {len(ids) for ids in trainer.train_dataset["input_ids"]} == {2}
    assert trainer.predict_proba(rows.remove_columns("labels")).shape == (16, 2)
    # -1 is the label of unlabelled test splits of GLUE.
    unlabelled = rows.remove_columns("labels").add_column("label", [-1] * 16)
    assert trainer.predict_proba(unlabelled).shape == (16, 2)
    assert trainer.evaluate(rows)["eval_loss"] == pytest.approx(trainer.evaluate({"a": rows})["eval_a_loss"])
    with pytest.raises(ValueError, match="eval_dataset.*got class -1"):
        trainer.evaluate(unlabelled)


def test_tokenizing_does_not_pickle_the_trainer(model_of, tokenizer, tmp_path, monkeypatch):
    pickled = []
    monkeypatch.setattr(
        WeakToStrongTrainer,
        "__reduce_ex__",
        lambda self, protocol: pickled.append(self) or (object, ()),
        raising=False,
    )
    rows = Dataset.from_dict({"text": ["w1 w2", "w3"], "labels": [0.1, 0.9]})
    train(model_of(), tokenizer, tmp_path, rows, max_steps=1)
    assert not pickled, "datasets hashed the trainer, with all weights of its model"


def test_model_init_is_prepared_as_a_passed_model_is(model_of, tokenizer, tmp_path):
    args = arguments(tmp_path, max_steps=2)
    common = {"args": args, "train_dataset": make_rows(24), "processing_class": tokenizer}
    lora = {"r": 4, "target_modules": "all-linear", "task_type": "SEQ_CLS"}
    fresh = WeakToStrongTrainer(
        model_init=lambda: get_peft_model(model_of("gpt2").to(torch.bfloat16), LoraConfig(**lora)), **common
    )
    fresh.train()
    modules = list(fresh.model.modules())
    assert {module.p for module in modules if isinstance(module, torch.nn.Dropout)} == {0}
    assert {p.dtype for p in fresh.model.parameters() if p.requires_grad} == {torch.float32}


@pytest.mark.parametrize("kind", ["llama", "gpt2", "bert"])
def test_lora_trains_adapters_and_head_and_nothing_else(kind, model_of, tokenizer, tmp_path):
    before = {name: value.clone() for name, value in model_of(kind).state_dict().items()}
    config = LoraConfig(r=4, target_modules="all-linear", task_type="SEQ_CLS")
    record = Record()
    trainer = WeakToStrongTrainer(
        model=model_of(kind),
        args=arguments(tmp_path),
        train_dataset=make_rows(24),
        processing_class=tokenizer,
        peft_config=config,
        callbacks=[record],
    )
    start = {name: value.clone() for name, value in trainer.model.named_parameters()}
    trainer.train()
    for name, value in trainer.model.named_parameters():
        assert torch.equal(value, start[name]) != value.requires_grad, name
    base = trainer.model.unload().state_dict()
    assert all(
        torch.equal(base[name], value)
        for name, value in before.items()
        if "score" not in name and "classifier" not in name
    )


ROWS, UNLABELLED = make_rows(4), make_rows(4, labels="none")
DROPOUT = LoraConfig(task_type="SEQ_CLS", target_modules="all-linear", lora_dropout=0.1)


def labelled(*labels) -> dict:
    return {"train_dataset": UNLABELLED.add_column("labels", list(labels))}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"train_dataset": UNLABELLED}, "expected a column `labels`"),
        ({"train_dataset": ROWS.add_column("label", [0, 1, 0, 1])}, "`label` and `labels`"),
        ({"train_dataset": ROWS.select([])}, "no rows"),
        (labelled(0.5, float("nan"), 0.5, 0.5), "row-1"),
        (labelled(0.5, 0.5, 1.5, 0.5), "row-2"),
        (labelled(*[[0.5, 0.5]] * 3, [0.5, 0.6]), "row-3.*sum|sum.*row-3"),
        (labelled(0, 1, 2, 0), "got class 2"),
        ({"quantization_config": object()}, "quantization_config"),
        ({"peft_config": DROPOUT}, "lora_dropout=0.1 and disable_dropout=True"),
        ({"compute_loss_func": lambda *inputs, **kwargs: None}, "compute_loss_func"),
    ],
    ids=["unlabelled", "two label columns", "no rows", "nan", "above one", "sum above one", "third class",
         "quantization", "dropout", "loss function"],
)  # fmt: skip
def test_unlabelled_rows_and_confusing_options_are_refused(options, message, model_of, tokenizer, tmp_path):
    with pytest.raises(ValueError, match=message):
        WeakToStrongTrainer(
            model_of(), arguments(tmp_path), processing_class=tokenizer, **({"train_dataset": ROWS} | options)
        )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"loss_type": "cross_entropy"}, "expected one of xent, confidence"),
        ({"label_smoothing_factor": 0.1}, "label_smoothing_factor: got 0.1"),
    ],
    ids=["loss type", "label smoothing"],
)
def test_arguments_that_no_loss_honours_are_refused(options, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        arguments(tmp_path, **options)


def test_model_never_sees_labels(model_of, tokenizer, tmp_path):
    model = model_of()
    seen = []
    forward = model.forward
    model.forward = lambda *args, **kwargs: (seen.append(set(kwargs)), forward(*args, **kwargs))[1]
    trainer = WeakToStrongTrainer(
        model=model,
        args=arguments(tmp_path, remove_unused_columns=False),
        train_dataset=make_rows(24).remove_columns("id"),
        processing_class=tokenizer,
    )
    trainer.train()
    assert seen and all("labels" not in names for names in seen)
