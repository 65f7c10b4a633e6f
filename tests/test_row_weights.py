"""Tests that the column `weight` weights the rows of a step, in every trainer, and nothing else."""

import json

import numpy as np
import pytest
import torch
from datasets import Dataset
from helpers.cards import card_of, results
from helpers.chains import student
from helpers.finetuners import finetuner_of
from helpers.models import make_character_tokenizer, make_language_model, make_rows, make_tokenizer
from helpers.training import make_pairs, rows_of, with_weights
from helpers.uneven_rows import make
from helpers.uneven_rows import train as train_uneven
from peft import PromptTuningConfig, get_peft_model
from torch.nn.functional import cross_entropy, logsigmoid
from transformers import DataCollatorWithPadding

from w2s_hf.collators import WeakToStrongCollator, move_padding, split_by_tokens
from w2s_hf.probabilities import as_weights

KINDS = ["classes", "pairs", "completions"]
OPTIONS = {
    "classes": {"loss_type": "confidence", "aux_warmup_ratio": 0.0},
    "pairs": {"soft_label": "random", "center_rewards_coefficient": 0.1},
    "completions": {},
}


def rows_of_kind(kind: str, n_rows: int) -> Dataset:
    if kind == "pairs":
        return make_pairs(n_rows, "random")
    return rows_of(n_rows) if kind == "completions" else make_rows(n_rows)


def trainer_of(kind: str, rows: Dataset, tmp_path, **options):
    """Returns the trainer of one step on all rows."""
    options = {"rows_per_step": len(rows), "max_grad_norm": 1e9} | options
    return make(kind, len(rows), options, tmp_path, 1, [], rows)


def trained(kind: str, rows: Dataset, tmp_path, **options) -> tuple[list[dict], dict]:
    """Returns the logs of the steps and the final weights."""
    trainer = trainer_of(kind, rows, tmp_path, **options)
    trainer.train()
    steps = [entry for entry in trainer.state.log_history if "grad_norm" in entry]
    return steps, {name: value.clone() for name, value in trainer.model.state_dict().items()}


def assert_close(one: dict, other: dict) -> None:
    for name, value in one.items():
        torch.testing.assert_close(value, other[name], rtol=1e-4, atol=1e-6)


def loss_by_hand(kind: str, trainer, rows: Dataset) -> torch.Tensor:
    """Returns `sum(w l) / sum(w)` from one forward pass per row, without padding."""
    model, total, weight_sum = trainer.model, 0.0, 0.0
    for row in rows:
        if kind == "classes":
            logits = model(torch.tensor([row["input_ids"]])).logits[0]
            losses = cross_entropy(logits[None], torch.tensor([row["labels"]]), reduction="none")
        elif kind == "pairs":
            chosen, rejected = (
                model(torch.tensor([row[f"{name}_ids"]])).logits[0, 0] for name in ("chosen", "rejected")
            )
            p, difference = row["soft_label"], chosen - rejected
            losses = -(p * logsigmoid(difference) + (1 - p) * logsigmoid(-difference)) + 0.1 * (chosen + rejected) ** 2
            losses = losses[None]
        else:
            tokenizer = trainer.processing_class
            prompt = tokenizer(row["prompt"])["input_ids"]
            ids = tokenizer(row["prompt"] + row["completion"])["input_ids"] + [tokenizer.eos_token_id]
            log_probs = model(torch.tensor([ids])).logits[0].log_softmax(-1)
            losses = torch.stack([-log_probs[at - 1, ids[at]] for at in range(len(prompt), len(ids))])
        total = total + row["weight"] * losses.sum()
        weight_sum += row["weight"] * len(losses)
    return total / weight_sum


@pytest.mark.parametrize("kind", KINDS)
def test_a_step_is_the_weighted_mean_by_hand(kind, tmp_path):
    rows = with_weights(rows_of_kind(kind, 5), [0.5, 3.0, 0.0, 1.0, 0.25])
    options = {"center_rewards_coefficient": 0.1} if kind == "pairs" else {}
    trainer = trainer_of(kind, rows, tmp_path, **options)
    loss = loss_by_hand(kind, trainer, rows)
    parameters = dict(trainer.model.named_parameters())
    gradients = torch.autograd.grad(loss, list(parameters.values()), allow_unused=True)
    expected = {
        name: value.detach() - 0.1 * (0 if gradient is None else gradient)
        for (name, value), gradient in zip(parameters.items(), gradients, strict=True)
    }
    (step,), weights = trained(kind, rows, tmp_path, **options)
    assert step["loss"] == pytest.approx(loss.item(), rel=1e-4)
    assert_close(expected, weights)
    unweighted = trained(kind, rows.remove_columns("weight"), tmp_path, **options)[0]
    assert abs(unweighted[0]["loss"] - step["loss"]) > 1e-3, "the weights change nothing, so the test is trivial"


@pytest.mark.parametrize("kind", KINDS)
def test_weights_of_1_train_bit_for_bit_as_no_column(kind, tmp_path):
    rows = rows_of_kind(kind, 5)
    for options in (OPTIONS[kind], {"gradient_accumulation_steps": 2, "rows_per_step": 2}):
        options = {name: value for name, value in options.items() if name != "soft_label"}
        parts = [rows.remove_columns("soft_label")] if kind == "pairs" and "rows_per_step" in options else [rows]
        for part in parts:
            steps, weights = trained(kind, part, tmp_path, **options)
            steps_of_1, weights_of_1 = trained(kind, with_weights(part, [1.0] * 5), tmp_path, **options)
            assert steps == steps_of_1
            assert all(torch.equal(value, weights_of_1[name]) for name, value in weights.items())


@pytest.mark.parametrize("kind", KINDS)
def test_the_cut_of_a_step_with_weights_changes_nothing(kind, tmp_path):
    options = OPTIONS[kind] | {"weights": True}
    cuts = [
        {"rows_per_step": 2, "gradient_accumulation_steps": 4},
        {"rows_per_step": 1, "gradient_accumulation_steps": 8},
    ]
    cuts += [] if kind == "completions" else [{"max_tokens_per_micro_batch": 60}]
    whole = train_uneven(kind, 11, options, tmp_path, 1)
    for cut in cuts:
        part = train_uneven(kind, 11, options | cut, tmp_path, 1)
        torch.testing.assert_close(part["steps"], whole["steps"], rtol=1e-4, atol=1e-5)
        assert_close(part["weights"], whole["weights"])


@pytest.mark.parametrize("kind", KINDS)
def test_a_row_of_weight_0_is_no_row_and_a_step_of_such_rows_changes_nothing(kind, tmp_path):
    rows = with_weights(rows_of_kind(kind, 5), [1.0, 0.0, 2.0, 0.0, 0.5])
    options = {"loss_type": "xent"} if kind != "completions" else {}
    (step,), weights = trained(kind, rows, tmp_path, **options)
    (other_step,), other_weights = trained(kind, rows.select([0, 2, 4]), tmp_path, **options)
    assert step["loss"] == pytest.approx(other_step["loss"], rel=1e-5)
    assert_close(weights, other_weights)
    # Each step has one row: two steps change nothing, because their loss and gradient are 0.
    steps, weights = trained(kind, rows.select([0, 1, 3]), tmp_path, rows_per_step=1, **options)
    assert sorted(entry["grad_norm"] > 0 for entry in steps) == [False, False, True]
    assert sum(abs(entry["loss"]) < 1e-6 for entry in steps) == 2
    assert_close(weights, trained(kind, rows.select([0]), tmp_path, **options)[1])


@pytest.mark.parametrize("kind", KINDS)
def test_a_model_never_sees_weights_and_evaluation_does_not_use_them(kind, tmp_path):
    rows = rows_of_kind(kind, 5)
    weighted = with_weights(rows)
    options = {"loss_type": "confidence", "rows_per_step": 2, "gradient_accumulation_steps": 3}  # with a first pass
    trainer, names = trainer_of(kind, weighted, tmp_path, **(options if kind == "classes" else {})), set()
    trainer.model.register_forward_pre_hook(lambda model, args, inputs: names.update(inputs), with_kwargs=True)
    trainer.train()
    expected = trainer.evaluate(rows)["eval_loss"]
    assert trainer.evaluate(weighted)["eval_loss"] == expected
    assert trainer.evaluate(rows.add_column("weight", ["heavy"] * 5))["eval_loss"] == expected
    if kind != "completions":
        assert np.array_equal(trainer.predict(weighted).predictions, trainer.predict(rows).predictions)
        unlabelled = weighted.remove_columns("labels" if kind == "classes" else "soft_label")
        assert np.array_equal(trainer.predict(unlabelled).predictions, trainer.predict(rows).predictions)
        invalid = with_weights(rows, [-1.0] * 5)
        assert np.array_equal(trainer.predict_proba(invalid), trainer.predict_proba(rows))
    assert "input_ids" in names and "weight" not in names


def test_a_transform_may_return_weights(tmp_path):
    rows = with_weights(make_rows(5)).remove_columns("id")
    expected = trained("classes", rows, tmp_path)
    transformed = rows.with_transform(lambda batch: batch)
    steps, weights = trained("classes", transformed, tmp_path, remove_unused_columns=False)
    assert [entry["loss"] for entry in steps] == [entry["loss"] for entry in expected[0]]
    assert_close(weights, expected[1])


@pytest.mark.parametrize("kind", KINDS)
def test_weights_may_be_tensors(kind, tmp_path):
    rows = with_weights(rows_of_kind(kind, 5))
    rows = rows.remove_columns([name for name in ("id",) if name in rows.column_names])
    assert trained(kind, rows.with_format("torch"), tmp_path)[0] == trained(kind, rows, tmp_path)[0]


def test_weights_of_a_batch_stay_with_their_rows():
    tokenizer = make_tokenizer()
    tokenizer.padding_side = "left"
    rows = with_weights(make_rows(5), [0.0, 1.0, 2.0, 3.0, 4.0])
    batch = WeakToStrongCollator(DataCollatorWithPadding(tokenizer))(list(rows.remove_columns("id")))
    assert batch["weight"].dtype == torch.float32 and batch["weight"].tolist() == [0, 1, 2, 3, 4]
    assert move_padding(batch, "right")["weight"] is batch["weight"]
    lengths = [len(ids) for ids in rows["input_ids"]]
    for part in split_by_tokens(batch, 40):
        assert part["attention_mask"].sum(dim=1).tolist() == [lengths[int(weight)] for weight in part["weight"]]


INVALID = {
    "negative": ([1.0, -0.5, 1.0], "weight: got -0.5 in row 1, expected finite numbers that are at least 0"),
    "NaN": ([1.0, 1.0, float("nan")], "weight: got nan in row 2"),
    "missing": ([None, 1.0, None], "weight: got None in rows 0, 2, expected one number per row"),
    "text": (["1", "1", "1"], "weight: got '1' in rows 0, 1, 2, expected one number per row"),
    "lists": ([[1.0, 2.0], [1.0], [1.0]], "weight: got .* in rows 0, 1, 2, expected one number per row"),
    "all 0": ([0.0, 0.0, 0.0], "got weight 0 in all 3 rows, expected a positive weight"),
}


@pytest.mark.parametrize("name", INVALID)
def test_weights_that_are_none_are_refused_before_training(name, tmp_path):
    values, message = INVALID[name]
    for kind in [*KINDS, "chain"]:
        rows = rows_of_kind(kind, 3)
        rows = rows.remove_columns([column for column in ("id",) if column in rows.column_names])
        with pytest.raises(ValueError, match=f"train_dataset.*: {message}"):
            trainer_of(kind, rows.add_column("weight", values), tmp_path)


def test_infinite_weights_are_refused_and_true_is_1():
    with pytest.raises(ValueError, match="weight: got inf in row b"):
        as_weights([1.0, 1e300], ["a", "b"])
    assert as_weights([True, False]).tolist() == [1.0, 0.0]


@pytest.mark.parametrize("kind", [*KINDS, "chain"])
def test_a_misspelt_column_of_weights_is_refused(kind, tmp_path):
    rows = rows_of_kind(kind, 5).add_column("weights", [1.0] * 5)
    with pytest.raises(ValueError, match="a column 'weights', which the trainer does not use, expected 'weight'"):
        trainer_of(kind, rows, tmp_path)


@pytest.mark.parametrize("kind", KINDS)
def test_a_collator_that_drops_or_changes_weights_is_refused(kind, tmp_path):
    trainer = trainer_of(kind, with_weights(rows_of_kind(kind, 5)), tmp_path)
    collate = trainer.data_collator
    for change, message in (
        (lambda weight: {}, "got a column `weight`, and batches with .*expected 'weight' among them"),
        (lambda weight: {"weight": weight[:2]}, "got 2 weights in a batch of 5 rows, expected one weight per row"),
        (lambda weight: {"weight": -weight}, "expected finite numbers that are at least 0"),
    ):

        def other(examples, change=change):
            batch = dict(collate(examples))
            return batch | change(batch.pop("weight")) if change(torch.ones(5)) else drop(batch)

        def drop(batch):
            return {name: value for name, value in batch.items() if name != "weight"}

        trainer.data_collator = other
        with pytest.raises(ValueError, match=message):
            trainer.train()


@pytest.mark.parametrize("kind", KINDS)
def test_batches_with_and_without_weights_are_refused(kind, tmp_path):
    for n_accumulated in (1, 2):  # batches of two steps, and of one step
        options = {"rows_per_step": 2, "gradient_accumulation_steps": n_accumulated}
        trainer = trainer_of(kind, rows_of_kind(kind, 6), tmp_path, **options)
        collate, batches = trainer.data_collator, []

        def other(rows, collate=collate, batches=batches):
            batches.append(rows)
            return collate(rows) | ({"weight": torch.ones(len(rows))} if len(batches) > 1 else {})

        trainer.data_collator = other
        with pytest.raises(ValueError, match="got batches with and without 'weight', expected it in all"):
            trainer.train()
        trainer.train()  # only batches with weights


def test_virtual_tokens_have_no_weight(tmp_path):
    runs = []
    for weights in ([1.0] * 5, None, [2.0, 0.0, 0.0, 0.0, 1.0]):
        rows = rows_of(5) if weights is None else with_weights(rows_of(5), weights)
        trainer = trainer_of("completions", rows, tmp_path)
        model = get_peft_model(trainer.model, PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3))
        torch.nn.init.ones_(model.prompt_encoder["default"].embedding.weight)
        tokenizer = trainer.processing_class
        trainer = type(trainer)(model, trainer.args, train_dataset=rows, processing_class=tokenizer)
        trainer.train()
        runs.append(trainer.state.log_history[0])
    assert runs[0] == runs[1] and abs(runs[2]["loss"] - runs[0]["loss"]) > 1e-3


@pytest.mark.filterwarnings("ignore:`label_smoothing_factor` is deprecated")
@pytest.mark.parametrize(("option", "value"), [("label_smoothing_factor", 0.1), ("loss_type", "dft")])
def test_completions_weight_only_the_cross_entropy(option, value, tmp_path):
    trainer = trainer_of("completions", with_weights(rows_of(5)), tmp_path, **{option: value})
    with pytest.raises(ValueError, match=f"{option}: got '?{value}'? and rows with weights"):
        trainer.train()


@pytest.mark.parametrize("kind", ["classification", "reward", "chess"])
def test_experiments_train_on_the_weights_of_the_labels(kind, tmp_path):
    finetuner, rows = finetuner_of(kind, tmp_path, tmp_path / "model")
    truth = finetuner.setting.with_ground_truth(rows)
    weighted = with_weights(truth)
    assert finetuner.fingerprint(weighted) != finetuner.fingerprint(truth)
    assert finetuner.fingerprint(weighted) != finetuner.fingerprint(with_weights(truth, [2.0] * len(truth)))
    assert finetuner.fingerprint(weighted, with_labels=False) == finetuner.fingerprint(truth, with_labels=False)
    tokenizer = make_character_tokenizer() if kind == "chess" else make_tokenizer()
    model = {"chess": lambda: make_language_model(tokenizer), "reward": lambda: student(0, num_labels=1)}
    model = model.get(kind, lambda: student(0))()

    def tokenize(part):
        return finetuner.tokenize(type("Spec", (), {"path": "m"}), tokenizer, part)

    trainer = finetuner.setting.make_trainer(model, finetuner.args, tokenizer, weighted, weighted, tokenize)
    assert trainer.train_dataset["weight"][:] == pytest.approx(weighted["weight"][:])


def test_cards_tell_the_weights(tmp_path):
    trainer = trainer_of("classes", with_weights(make_rows(4), [0.0, 1.0, 2.0, 0.0]), tmp_path)
    trainer.card.supervisor_weights = [0.7, 0.3]  # of the user
    trainer.create_model_card()
    assert trainer.card.supervisor_weights == [0.7, 0.3]
    assert trainer.card.row_weights == {"mean": 0.75, "n_zero": 2}
    text = "The losses of the training rows were weighted. The mean weight is 0.75, and 2 rows have weight 0."
    assert text in (tmp_path / "README.md").read_text()
    values = results()
    assert "weighted" not in card_of(values).render()
    labels = {"n_train": 3, "accuracy": 0.8, "weights": {"mean": 0.75, "n_zero": 2}}
    values["runs"][0]["students"][0]["labels"] = labels
    card = card_of(json.loads(json.dumps(values))).render()
    assert text in card and "The student was trained on 3 rows, and 20 % of their labels are wrong." in card
