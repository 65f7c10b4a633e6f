"""Tests the loss `learned_supervisors`: weights of supervisors that are learned together with the student."""

import json
from dataclasses import replace
from math import log, sqrt
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from datasets import Dataset
from helpers.cards import card_of, results
from helpers.chains import student
from helpers.finetuners import finetuner_of
from helpers.label_context import make_context
from helpers.models import make_rows, make_tokenizer
from helpers.training import Stop, arguments, make_pairs, with_supervisors, with_weights
from transformers import set_seed

from w2s_hf import (
    METHODS,
    BootstrapConfig,
    Method,
    RewardPairConfig,
    RewardPairTrainer,
    WeakCompletions,
    WeakLabels,
    WeakToStrongConfig,
    WeakToStrongTrainer,
)
from w2s_hf.collators import RewardPairCollator, move_padding, split_by_tokens
from w2s_hf.experiments.config import ExperimentArguments
from w2s_hf.experiments.scores import _steps
from w2s_hf.labels import label_files
from w2s_hf.losses import LOSS_ARGUMENTS, combined_labels, supervisor_gradients
from w2s_hf.transforms import all_supervisors

OPTIONS = {
    "loss_type": "learned_supervisors", "supervisor_warmup_epochs": 0.0, "optim": "sgd", "learning_rate": 0.1,
    "max_grad_norm": 1e9, "bf16": False, "gradient_checkpointing": False,
}  # fmt: skip


def make(directory, rows, callbacks=(), **options):
    """Returns the trainer of a tiny student on rows or pairs."""
    is_pairs = "chosen_ids" in rows.column_names
    kind, trainer, kwargs = WeakToStrongConfig, WeakToStrongTrainer, {}
    if is_pairs:
        kind, trainer, kwargs = RewardPairConfig, RewardPairTrainer, {"max_length": None}
    args = arguments(directory, kind, **OPTIONS | kwargs | options)
    set_seed(0)
    model = student(0, num_labels=1 if is_pairs else 2)
    return trainer(model, args, train_dataset=rows, processing_class=make_tokenizer(), callbacks=list(callbacks))


def trained(directory, rows, **options):
    """Returns the logged weights of the supervisors of each step, with the final weights, and the trainer."""
    trainer = make(directory, rows, **options)
    trainer.train()
    return weights_of(trainer), trainer


def weights_of(trainer) -> np.ndarray:
    names = [name for name in trainer.state.log_history[-1] if name.startswith("supervisor_weight_")]
    return np.array([[entry[name] for name in names] for entry in trainer.state.log_history if names[0] in entry])


# ---- Formulas ----


def test_labels_and_gradient_by_hand():
    labels = torch.tensor([[[0.2, 0.8], [0.6, 0.4]]])
    # The geometric mean is sqrt(0.12) : sqrt(0.32).
    t0 = sqrt(0.12) / (sqrt(0.12) + sqrt(0.32))
    weights = torch.tensor([0.5, 0.5])
    assert combined_labels(labels, weights)[0].tolist() == pytest.approx([t0, 1 - t0], abs=1e-6)
    # With P(class 1) = 0.9, minus the covariance is t0 t1 (log 0.1 - log 0.9) (log p_1 - log p_0).
    logits = torch.tensor([[0.0, log(9)]])
    expected = [t0 * (1 - t0) * log(1 / 9) * log(odds) for odds in (4, 2 / 3)]
    assert supervisor_gradients(logits, labels, weights)[0].tolist() == pytest.approx(expected, abs=1e-6)


def test_the_gradient_is_that_of_the_cross_entropy():
    generator = torch.Generator().manual_seed(0)
    labels = torch.rand(5, 4, 3, generator=generator).softmax(dim=-1)
    labels[0, 0] = torch.tensor([0.0, 1.0, 0.0])  # a hard label
    logits = torch.randn(5, 3, generator=generator)
    weights = torch.tensor([0.1, 0.2, 0.3, 0.4], requires_grad=True)
    assert torch.isfinite(combined_labels(labels, weights)).all()
    for row in range(5):
        target = combined_labels(labels[row : row + 1], weights)
        (expected,) = torch.autograd.grad(-(target * logits[row].log_softmax(dim=-1)).sum(), weights)
        gradient = supervisor_gradients(logits, labels, weights.detach())[row]
        torch.testing.assert_close(gradient, expected, rtol=1e-4, atol=1e-6)
    with pytest.raises(ValueError, match=r"shape \(5, 4, 3\) and supervisor weights of shape \(3,\), expected"):
        combined_labels(labels, torch.ones(3) / 3)


# ---- Training ----


@pytest.mark.parametrize(("learning_rate", "n_smallest"), [(0.1, 0), (1.0, 1)])
def test_a_step_by_hand(learning_rate, n_smallest, tmp_path):
    rows = with_weights(with_supervisors(make_rows(5)), [0.5, 3.0, 0.0, 1.0, 0.25])
    options = {"max_steps": 1, "supervisor_learning_rate": learning_rate}
    model = make(tmp_path, rows).model
    logits = torch.cat([model(torch.tensor([row["input_ids"]])).logits for row in rows]).detach()
    labels, row_weights = torch.tensor(rows["supervisor_labels"][:]), torch.tensor(rows["weight"][:])
    target = labels.log().mean(dim=1).softmax(dim=-1)
    log_f, log_p = logits.log_softmax(dim=-1), labels.log()
    loss = (row_weights * -(target * log_f).sum(dim=-1)).sum() / row_weights.sum()
    covariance = (target * log_f)[:, None] * log_p - target[:, None] * log_p * (target * log_f).sum(-1)[:, None, None]
    gradient = -(row_weights[:, None] * covariance.sum(dim=-1)).sum(dim=0) / row_weights.sum()
    expected = (1 / 3 - learning_rate * gradient).clamp_min(1e-6)
    weights, trainer = trained(tmp_path, rows, **options)
    assert trainer.state.log_history[0]["loss"] == pytest.approx(loss.item(), rel=1e-4)
    assert weights[0] == pytest.approx([1 / 3] * 3)
    assert weights[-1] == pytest.approx((expected / expected.sum()).tolist(), rel=1e-4)
    assert abs(weights[-1] - 1 / 3).max() > 0.01 and (expected == 1e-6).sum() == n_smallest
    # The student has the step of cross-entropy with a constant target.
    combined = rows.remove_columns(["labels", "supervisor_labels"]).add_column("labels", target.tolist())
    plain = make(tmp_path, combined, loss_type="xent", max_steps=1)
    plain.train()
    for ours, theirs in zip(trainer.model.parameters(), plain.model.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("kind", ["rows", "pairs"])
def test_the_cut_of_a_step_changes_no_weight(kind, tmp_path):
    rows = with_weights(with_supervisors(make_rows(11) if kind == "rows" else make_pairs(11, "random")))
    options = {"max_steps": 4, "supervisor_learning_rate": 1.0}
    whole, _ = trained(tmp_path, rows, **options)
    assert abs(whole[-1] - whole[1]).max() > 1e-3, "the weights do not change, so the test is trivial"
    for cut in (
        {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 8},
        {"max_tokens_per_micro_batch": 60},
    ):
        assert trained(tmp_path, rows, **options, **cut)[0] == pytest.approx(whole, rel=1e-4)


def test_weights_are_equal_for_a_tenth_of_an_epoch(tmp_path):
    rows = with_supervisors(make_rows(22))
    options = {"max_steps": 4, "per_device_train_batch_size": 2}
    first_changes = {}
    for epochs in (0.0, 0.1, 0.25, 9.0):  # 11 steps per epoch
        weights, _ = trained(tmp_path, rows, supervisor_warmup_epochs=epochs, **options)
        first_changes[epochs] = int((weights == 1 / 3).all(axis=1).sum())
    assert first_changes == {0.0: 1, 0.1: 3, 0.25: 4, 9.0: 5}
    weights, _ = trained(tmp_path, rows, supervisor_learning_rate=0.0, **options)
    assert (weights == 1 / 3).all()


def test_exchanged_pairs_learn_the_same_weights(tmp_path):
    pairs = with_supervisors(make_pairs(16, "random"))
    exchanged = pairs.map(
        lambda row, number: (
            row
            if number % 2
            else {
                "chosen_ids": row["rejected_ids"],
                "rejected_ids": row["chosen_ids"],
                "soft_label": 1 - row["soft_label"],
                "supervisor_labels": [labels[::-1] for labels in row["supervisor_labels"]],
            }
        ),
        with_indices=True,
    )
    assert 0 < RewardPairCollator(pad_token_id=0)(pairs.to_list())["turned"].sum() < 16
    weights, _ = trained(tmp_path, pairs, supervisor_learning_rate=1.0)
    assert trained(tmp_path, exchanged, supervisor_learning_rate=1.0)[0] == pytest.approx(weights, rel=1e-4)


def test_killed_and_resumed_is_uninterrupted(tmp_path):
    rows = with_supervisors(make_rows(16))
    options = {"max_steps": 4, "save_strategy": "steps", "save_steps": 2, "optim": "adamw_torch"}
    whole = make(tmp_path / "whole", rows, **options)
    whole.train()
    with pytest.raises(KeyboardInterrupt):
        make(tmp_path / "stopped", rows, callbacks=[Stop(2)], **options).train()
    resumed = make(tmp_path / "stopped", rows, **options)
    resumed.train(resume_from_checkpoint=True)
    assert (weights_of(resumed) == weights_of(whole)).all() and len(weights_of(whole)) == 5
    for ours, theirs in zip(resumed.model.parameters(), whole.model.parameters(), strict=True):
        assert torch.equal(ours, theirs)
    fewer = make(tmp_path / "stopped", with_supervisors(make_rows(16), 2), **options)
    with pytest.raises(ValueError, match="labels of 2 supervisors, expected 3 as in earlier batches"):
        fewer.train(resume_from_checkpoint=str(tmp_path / "stopped" / "checkpoint-2"))


def planted(n_rows: int, seed: int) -> Dataset:
    """Returns rows with a good supervisor, and two supervisors whose labels do not depend on the row."""
    rng = np.random.default_rng(seed)
    classes = rng.integers(0, 2, n_rows)
    ids = [(rng.integers(4, 34, 8) + 30 * (rng.random(8) < 0.2 + 0.6 * label)).tolist() for label in classes]
    said = np.stack([classes, rng.integers(0, 2, n_rows), rng.integers(0, 2, n_rows)], axis=1)
    p = np.where(said == 1, 0.95, 0.05)
    of_each = np.stack([1 - p, p], axis=2)
    return Dataset.from_dict(
        {
            "input_ids": ids,
            "attention_mask": [[1] * 8] * n_rows,
            "labels": of_each.mean(axis=1).tolist(),
            "supervisor_labels": of_each.tolist(),
            "ground_truth": classes.tolist(),
        }
    )


def test_the_weight_of_the_good_supervisor_grows_and_the_student_is_better_than_with_the_mean(tmp_path):
    rows, test = planted(256, 0), planted(400, 1)
    truth = np.array(test["ground_truth"])
    accuracy, options = (
        {},
        {"max_steps": 96, "per_device_train_batch_size": 16, "optim": "adamw_torch", "learning_rate": 3e-3},
    )
    for loss_type in ("xent", "learned_supervisors"):
        of_loss = rows.remove_columns("supervisor_labels") if loss_type == "xent" else rows
        trainer = make(tmp_path, of_loss, loss_type=loss_type, supervisor_warmup_epochs=0.1, **options)
        trainer.train()
        accuracy[loss_type] = (trainer.predict_proba(test).argmax(axis=1) == truth).mean()
    assert weights_of(trainer)[-1][0] > 0.8
    assert accuracy["learned_supervisors"] > accuracy["xent"] + 0.02


# ---- Labels and batches ----


def two_supervisors() -> WeakLabels:
    first = WeakLabels(["a", "b", "c"], np.array([[0.9, 0.1], [0.2, 0.8], [0.5, 0.5]]), {"stage": "w1"})
    second = WeakLabels(["c", "b", "a"], np.array([[0.7, 0.3], [0.4, 0.6], [0.1, 0.9]]), {"stage": "w2"})
    return WeakLabels.mean([first, second], keep_supervisors=True)


def test_labels_keep_the_labels_of_each_supervisor(tmp_path):
    labels = two_supervisors()
    mean = replace(labels, supervisor_probabilities=None)
    assert labels.probabilities[0].tolist() == pytest.approx([0.5, 0.5])
    assert labels.supervisor_probabilities[0].tolist() == pytest.approx(np.array([[0.9, 0.1], [0.1, 0.9]]))
    assert labels.fingerprint != mean.fingerprint
    rows = Dataset.from_dict({"id": ["c", "a"], "text": ["x", "y"], "ground_truth": [0, 1]})
    joined = labels.join(rows)
    assert joined.column_names == ["id", "text", "labels", "supervisor_labels"]
    assert np.array(joined["supervisor_labels"][1]) == pytest.approx(np.array([[0.9, 0.1], [0.1, 0.9]]))
    assert mean.join(rows).column_names == ["id", "text", "labels"]
    assert mean.fingerprint == "34e59ab565115d4b", "labels without this field have the fingerprint of older versions"
    labels = replace(labels, weights=np.array([1.0, 2.0, 3.0]))
    labels.save(tmp_path)
    loaded = WeakLabels.load(tmp_path)
    assert loaded.fingerprint == labels.fingerprint and loaded.weights.tolist() == [1, 2, 3]
    assert (loaded.supervisor_probabilities == labels.supervisor_probabilities).all()
    with pytest.raises(ValueError, match="Load it with WeakLabels"):
        WeakCompletions.load(tmp_path)
    card = label_files(tmp_path, "me/labels")["README.md"].decode()
    assert "| supervisor_probabilities | probability of each class, for each supervisor |" in card


def test_a_mean_of_labels_of_several_supervisors_is_refused():
    with pytest.raises(ValueError, match="mean: got labels with supervisor_probabilities, expected labels without"):
        WeakLabels.mean([two_supervisors(), replace(two_supervisors(), supervisor_probabilities=None)])


def test_labels_are_extended_with_the_labels_of_each_supervisor():
    labels = two_supervisors()
    first = replace(labels, ids=labels.ids[:1], probabilities=labels.probabilities[:1],
                    supervisor_probabilities=labels.supervisor_probabilities[:1])  # fmt: skip
    assert first.extended(labels, ["b", "c"]).fingerprint == labels.fingerprint
    with pytest.raises(ValueError, match="expected both labels with or without labels of each supervisor"):
        first.extended(replace(labels, supervisor_probabilities=None), ["b"])


@pytest.mark.parametrize(
    ("of_each", "message"),
    [
        (np.full((3, 1, 2), 0.5), "got labels of 1 supervisor, expected at least two"),
        (np.full((3, 2), 0.5), r"got shape \(3, 2\), expected \(rows, supervisors, 2\)"),
        (np.full((2, 2, 2), 0.5), "got supervisor_probabilities of 2 rows for 3 ids"),
        (np.array([[[0.5, 0.5], [0.5, 0.5]]] * 2 + [[[0.5, 0.5], [0.5, 0.6]]]), "supervisor 2: got .* in row c"),
        ([[[0.5, 0.5], [0.5, 0.5]], [[0.5, 0.5]], None], "got rows of different shape, or without numbers"),
    ],
)
def test_labels_of_each_supervisor_are_checked(of_each, message):
    with pytest.raises(ValueError, match=f"WeakLabels: .*{message}"):
        replace(two_supervisors(), supervisor_probabilities=of_each)


def test_labels_of_supervisors_are_no_tokens():
    # Two supervisors and two tokens: the labels have the shape of the mask.
    labels = torch.arange(12.0).view(3, 2, 2)
    batch = {"attention_mask": torch.tensor([[0, 1], [1, 1], [0, 1]]), "supervisor_labels": labels}
    assert move_padding(batch, "right")["supervisor_labels"] is labels
    parts = split_by_tokens(move_padding(batch, "right"), 2)
    assert torch.equal(torch.cat([part["supervisor_labels"] for part in parts]), labels[[0, 2, 1]])


# ---- Refused ----


@pytest.mark.parametrize("kind", ["rows", "pairs"])
def test_the_column_and_the_loss_belong_together(kind, tmp_path):
    rows = make_rows(6).remove_columns("id") if kind == "rows" else make_pairs(6, "random")
    both = with_supervisors(rows)
    with pytest.raises(ValueError, match="train_dataset: got .* expected 'supervisor_labels' among them"):
        make(tmp_path, rows)
    with pytest.raises(ValueError, match="train_dataset: got 'supervisor_labels' and the loss 'confidence'"):
        make(tmp_path, both, loss_type="confidence")
    with pytest.raises(ValueError, match="train_dataset: supervisor_labels: got labels of 1 supervisor"):
        make(tmp_path, with_supervisors(rows, 1))
    with pytest.raises(ValueError, match="'supervisor_label', which the trainer does not use, expected"):
        make(tmp_path, both.rename_column("supervisor_labels", "supervisor_label"))
    # The columns of transformed rows are known only in batches.
    for part, options in ((rows, {}), (both, {"loss_type": "xent"})):
        part = part.with_transform(lambda batch: batch)
        trainer = make(tmp_path, part, remove_unused_columns=False, max_steps=1, **options)
        with pytest.raises(ValueError, match="train_dataset: got .*'supervisor_labels'"):
            trainer.train()


@pytest.mark.parametrize("kind", ["rows", "pairs"])
def test_labels_of_a_collator_are_checked(kind, tmp_path):
    trainer = make(tmp_path, with_supervisors(make_rows(6) if kind == "rows" else make_pairs(6, "random")))
    collate = trainer.data_collator
    trainer.data_collator = lambda rows: dict(batch := collate(rows), supervisor_labels=-batch["supervisor_labels"])
    with pytest.raises(ValueError, match=r"supervisor_labels: supervisor 1: got .* expected values in \[0, 1\]"):
        trainer.train()


def test_evaluation_uses_the_labels_of_the_rows(tmp_path):
    for rows in (make_rows(6), make_pairs(6, "random")):
        trainer = make(tmp_path, with_supervisors(rows))
        inputs: list[dict] = []
        trainer.model.register_forward_pre_hook(
            lambda model, args, kwargs, inputs=inputs: inputs.append(kwargs), with_kwargs=True
        )
        expected = trainer.evaluate(rows)["eval_loss"]
        assert trainer.evaluate(with_supervisors(rows))["eval_loss"] == expected
        assert np.array_equal(trainer.predict(with_supervisors(rows)).predictions, trainer.predict(rows).predictions)
        unlabelled = with_supervisors(rows).remove_columns("labels" if "labels" in rows.column_names else "soft_label")
        assert np.array_equal(trainer.predict(unlabelled).predictions, trainer.predict(rows).predictions)
        invalid = with_supervisors(rows, 1)
        assert trainer.evaluate(invalid)["eval_loss"] == expected
        assert np.array_equal(trainer.predict_proba(invalid), trainer.predict_proba(rows))
        assert inputs and not any("supervisor_labels" in kwargs for kwargs in inputs)


@pytest.mark.parametrize("name", LOSS_ARGUMENTS["learned_supervisors"])
def test_options_out_of_range_are_refused(name, tmp_path):
    for value in (-0.1, float("nan"), float("inf")):
        with pytest.raises(ValueError, match=f"{name}: got {value}, expected a finite number that is at least 0"):
            arguments(tmp_path, **{name: value})
    with pytest.raises(ValueError, match="'learned_supervisors' for a chain, expected another loss"):
        arguments(tmp_path, BootstrapConfig, loss_type="learned_supervisors")


# ---- Experiments ----


def test_the_method_needs_several_supervisors():
    with pytest.raises(ValueError, match="--methods learned_supervisors: got --n_supervisors 1, expected at least 2"):
        ExperimentArguments(methods=["naive", "learned_supervisors"])
    ExperimentArguments(methods=["naive", "learned_supervisors"], n_supervisors=2)
    with pytest.raises(ValueError, match="Method mine: got the loss 'learned_supervisors' and no transform"):
        Method("mine", loss="learned_supervisors")
    assert [name for name, method in METHODS.items() if method.needs_supervisors] == ["learned_supervisors"]
    with pytest.raises(
        ValueError, match="all_supervisors: got 1 supervisor, expected at least 2. Set --n_supervisors"
    ):
        all_supervisors(make_context(n_train=20, n_validation=4))


def test_the_transform_keeps_the_labels_of_all_supervisors():
    context = make_context(n_train=20, n_validation=4)
    ids = context.weak_labels.ids
    other = WeakLabels(ids[::-1], np.full((len(ids), 2), 0.5), {"stage": "weak-2"})

    class Two(type(context)):
        supervisors = (context.weak_labels, other)

    mean = WeakLabels.mean(list(Two.supervisors))
    labels = all_supervisors(Two(**vars(context) | {"weak_labels": mean}))
    assert labels.ids == context.ids and (labels.probabilities == mean.of(context.ids)).all()
    assert (labels.supervisor_probabilities[:, 0] == context.probabilities).all()
    assert (labels.supervisor_probabilities[:, 1] == 0.5).all()
    assert labels.provenance["transform"] == {"name": "all_supervisors", "n_supervisors": 2}


@pytest.mark.parametrize("kind", ["classification", "reward"])
def test_experiments_train_on_the_labels_of_each_supervisor(kind, tmp_path):
    finetuner, rows = finetuner_of(kind, tmp_path, tmp_path / "model")
    truth = finetuner.setting.with_ground_truth(rows)
    both = with_supervisors(truth)
    assert finetuner.fingerprint(both) != finetuner.fingerprint(truth)
    assert finetuner.fingerprint(both) != finetuner.fingerprint(with_supervisors(truth, seed=6))
    assert finetuner.fingerprint(both, with_labels=False) == finetuner.fingerprint(truth, with_labels=False)
    # Options that a loss does not read do not change the key of a stage.
    changed = {name: 9.0 for name in LOSS_ARGUMENTS["learned_supervisors"]}
    assert finetuner.settings_of(changed) == finetuner.settings_of({})
    own = finetuner.settings_of(changed | {"loss_type": "learned_supervisors"})
    assert {name: own[name] for name in changed} == {name: "9.0" for name in changed}

    def tokenize(part):
        return finetuner.tokenize(type("Spec", (), {"path": "m"}), make_tokenizer(), part)

    args = replace(finetuner.args, **{**OPTIONS, "max_steps": 2})
    model = student(0, num_labels=1 if kind == "reward" else 2)
    trainer = finetuner.setting.make_trainer(model, args, make_tokenizer(), both, both, tokenize, is_weak=True)
    assert trainer.train_dataset["supervisor_labels"][:] == both["supervisor_labels"][:]
    trainer.train()
    finals = weights_of(trainer)[-1].tolist()
    (tmp_path / "training.json").write_text(json.dumps(trainer.state.log_history))
    steps = _steps(SimpleNamespace(directory=tmp_path))
    assert steps == {"optimizer_steps": 2, "supervisor_weights": finals} and sum(finals) == pytest.approx(1)
    trainer.create_model_card()
    assert trainer.card.supervisor_weights == finals
    (card,) = [file for file in (tmp_path).glob("README.md")]
    assert "The training labels combine those of 3 supervisors, whose weights were learned" in card.read_text()


def test_cards_of_results_tell_the_weights():
    values = results()
    result = values["runs"][0]["students"][0]
    result["labels"] = {"n_train": 3, "accuracy": 0.8}
    card = card_of(values).render()
    assert "combine those of" not in card and "trained on 3 rows, and 20 % of their labels are wrong." in card
    result["supervisor_weights"] = [0.704, 0.096, 0.2]
    text = (
        "The training labels combine those of 3 supervisors, whose weights were learned with the student: 0.70, 0.10, "
        "0.20."
    )
    card = card_of(values).render()
    assert text in card and "trained on 3 rows.\n" in card and "labels are wrong" not in card
