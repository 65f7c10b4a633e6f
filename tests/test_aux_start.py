"""Tests that the auxiliary weight rises once a student agrees with its weak labels, for any micro-batches."""

import logging

import numpy as np
import pytest
import torch
from datasets import Dataset
from helpers.chains import student
from helpers.false_starts import share_of_starts
from helpers.models import make_tokenizer
from helpers.training import Record, Stop, arguments
from scipy.stats import hypergeom
from transformers import TrainerCallback, set_seed

from w2s_hf import RewardPairConfig, RewardPairTrainer, WeakToStrongConfig, WeakToStrongTrainer
from w2s_hf.experiments.cache import StageCache
from w2s_hf.experiments.finetuner import Finetuner
from w2s_hf.experiments.settings.classification import CLASSIFICATION
from w2s_hf.trainers.agreement import agreement_beyond_chance, latest_half

N_STEPS = 24
OPTIONS = {
    "max_steps": N_STEPS, "per_device_train_batch_size": 16, "loss_type": "confidence", "aux_start": "agreement",
    "aux_warmup_ratio": 0.25, "bf16": False, "gradient_checkpointing": False,
}  # fmt: skip
CUTS = {
    "16x1": {},
    "4x4": {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 4},
    "tokens": {"max_tokens_per_micro_batch": 60},
}


def learnable_rows(n: int = 320) -> Dataset:
    """Returns rows in which three tokens of four indicate the weak label. Tokens of class 1 have larger ids."""
    rng = np.random.default_rng(0)
    classes = rng.integers(0, 2, n)
    ids = [(rng.integers(4, 34, 8) + 30 * (rng.random(8) < 0.25 + 0.5 * label)).tolist() for label in classes]
    labels = [[0.2, 0.8] if label else [0.9, 0.1] for label in classes]
    return Dataset.from_dict({"input_ids": ids, "attention_mask": [[1] * 8] * n, "labels": labels})


def make(directory, rows=None, callbacks=(), **options):
    set_seed(0)
    args = arguments(directory, WeakToStrongConfig, **OPTIONS | options)
    rows = learnable_rows() if rows is None else rows
    return WeakToStrongTrainer(
        student(0), args, train_dataset=rows, processing_class=make_tokenizer(), callbacks=list(callbacks)
    )


def logged(trainer, name: str) -> list[float | None]:
    return [entry.get(name) for entry in trainer.state.log_history if "loss" in entry]


@pytest.mark.parametrize("loss_type", ["confidence", "openai", "entropy"])
def test_the_weight_rises_after_the_step_in_which_the_student_agrees_however_it_is_cut(loss_type, tmp_path):
    runs = {}
    for name, cut in CUTS.items():
        record = Record()
        trainer = make(tmp_path, callbacks=[record], loss_type=loss_type, **cut)
        trainer.train()
        runs[name] = torch.tensor(record.trajectory), logged(trainer, "aux_weight"), logged(trainer, "aux_start_step")
    _, weights, starts = runs["16x1"]
    start = int(starts[-1])
    assert 8 < start < N_STEPS - 6, "8 steps have 128 rows; steps before and after are needed"
    assert starts == [None] * start + [start] * (N_STEPS - start)
    assert weights[: start + 1] == [0] * (start + 1)
    ramp = np.arange(N_STEPS - start) / N_STEPS
    if loss_type == "openai":
        expected = np.where(ramp > 0.25, 0.5, 0.5 * ramp)
    else:
        expected = 0.5 * np.minimum(1, ramp / 0.25)
    assert weights[start:] == pytest.approx(expected.tolist())
    for trajectory, *others in runs.values():
        torch.testing.assert_close(trajectory, runs["16x1"][0], rtol=2e-4, atol=2e-6)
        assert others == [weights, starts]


@pytest.mark.parametrize("stop", [4, 20])
def test_killed_and_resumed_is_uninterrupted(stop, tmp_path):
    options = {"save_strategy": "steps", "save_steps": 4}
    whole = make(tmp_path / "whole", **options)
    whole.train()
    assert stop < logged(whole, "aux_start_step")[-1] or logged(whole, "aux_start_step")[stop - 1]
    with pytest.raises(KeyboardInterrupt):
        make(tmp_path / "stopped", callbacks=[Stop(stop)], **options).train()
    resumed = make(tmp_path / "stopped", **options)
    resumed.train(resume_from_checkpoint=True)
    assert logged(resumed, "aux_weight") == logged(whole, "aux_weight")
    assert logged(resumed, "aux_start_step") == logged(whole, "aux_start_step")
    for ours, theirs in zip(resumed.model.parameters(), whole.model.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_a_student_that_learns_nothing_is_trained_by_the_plain_loss_and_said_so(tmp_path, caplog):
    with caplog.at_level(logging.WARNING, "w2s_hf"):
        trainer = make(tmp_path / "waiting", learning_rate=0.0)
        trainer.train()
    assert set(logged(trainer, "aux_weight")) == {0}
    assert trainer.state.log_history[-1] == {"step": N_STEPS, "aux_start_step": None}
    assert "in 24 optimizer steps the student has not agreed with its weak labels" in caplog.text
    caplog.clear()
    with caplog.at_level(logging.WARNING, "w2s_hf"):
        trainer = make(tmp_path / "begun")
        trainer.train()
    assert "has not agreed" not in caplog.text and trainer.state.log_history[-1]["aux_start_step"] > 8


@pytest.mark.parametrize(("n_rows", "max_steps", "n_different"), [(100, 24, 100), (320, 4, 64)])
def test_too_few_rows_to_decide_on_are_warned_of_before_the_first_step(
    n_rows, max_steps, n_different, tmp_path, caplog
):
    class LogAtFirstStep(TrainerCallback):
        text = ""

        def on_step_begin(self, args, state, control, **kwargs):
            self.text = self.text or caplog.text

    log = LogAtFirstStep()
    with caplog.at_level(logging.WARNING, "w2s_hf"):
        trainer = make(tmp_path, learnable_rows(n_rows), callbacks=[log], max_steps=max_steps)
        trainer.train()
    assert f"aux_start='agreement': got {n_different} training rows, expected at least 128" in log.text
    assert "the student has seen fewer than 128 different rows" in caplog.text
    assert "has not agreed" not in caplog.text and trainer.state.log_history[-1]["aux_start_step"] is None


def test_pairs_start_by_agreement(tmp_path):
    set_seed(0)
    args = arguments(tmp_path, RewardPairConfig, max_length=None, **OPTIONS)
    rows = learnable_rows()
    classes = np.array(rows["labels"])[:, 1] > 0.5
    sides = [np.array(rows["input_ids"])[classes == label][:140] for label in (False, True)]
    turned = np.random.default_rng(0).random(140) < 0.5
    first, second = (np.where(turned[:, None], *order) for order in (sides, sides[::-1]))
    columns = {"chosen_ids": first.tolist(), "rejected_ids": second.tolist(), "soft_label": (~turned).astype(float)}
    pairs = Dataset.from_dict(columns)
    trainer = RewardPairTrainer(student(0, num_labels=1), args, train_dataset=pairs, processing_class=make_tokenizer())
    trainer.train()
    assert logged(trainer, "aux_start_step")[-1] > 8 and logged(trainer, "aux_weight")[-1] > 0


@pytest.mark.parametrize(
    ("options", "n_steps"),
    [({}, 5), ({"loss_type": "openai"}, 2), ({"aux_warmup_ratio": 0.0}, 0), ({"loss_type": "entropy"}, 5)],
)
def test_a_warm_up_of_few_steps_is_warned_of(options, n_steps, tmp_path, caplog):
    options = {"aux_start": "first_step", "aux_warmup_ratio": None, **options}
    with caplog.at_level(logging.WARNING, "w2s_hf"):
        make(tmp_path, **options).train()
    assert f"its auxiliary weight rises over {n_steps} of 24 optimizer steps" in caplog.text
    assert caplog.text.count("auxiliary weight rises") == 1


@pytest.mark.parametrize("options", [{}, {"loss_type": "xent"}, {"aux_coef": 0.0, "aux_start": "first_step"}])
def test_no_warm_up_is_warned_of_where_none_matters(options, tmp_path, caplog):
    with caplog.at_level(logging.WARNING, "w2s_hf"):
        make(tmp_path, max_steps=1, **options).train()
    assert "auxiliary weight" not in caplog.text


def test_chance_is_that_of_a_random_order():
    table = np.array([[30, 20], [10, 40]])
    chance = hypergeom(100, 50, 40)
    assert (30 - chance.mean()) / chance.std() == pytest.approx(4.06, abs=0.01)
    assert agreement_beyond_chance(table)
    assert agreement_beyond_chance(np.array([[28, 22], [12, 38]]))  # 3.25 standard deviations
    assert not agreement_beyond_chance(np.array([[27, 23], [13, 37]]))  # 2.84
    assert not agreement_beyond_chance(table[::-1]), "disagreement with the labels"
    assert not agreement_beyond_chance(np.array([[0, 0], [28, 100]])), "always one class, which is 0.78 of the labels"
    assert not agreement_beyond_chance(np.array([[4, 24], [14, 86]])), "0.70 of the labels, which is chance"
    assert agreement_beyond_chance(np.eye(3, dtype=int) * 5)


def test_the_latest_half_of_the_steps_and_128_rows():
    steps = [[[number, 0], [0, 32 - number]] for number in range(12)]
    assert latest_half(steps[:3]) is None
    assert latest_half(steps[:4])[0, 0] == 0 + 1 + 2 + 3
    assert latest_half(steps[:7])[0, 0] == 3 + 4 + 5 + 6
    assert latest_half(steps)[0, 0] == 6 + 7 + 8 + 9 + 10 + 11


def test_no_row_counts_twice_in_many_epochs():
    steps = [[[number, 0], [0, 32 - number]] for number in range(12)]
    assert latest_half(steps, 5 * 32 + 31)[0, 0] == 7 + 8 + 9 + 10 + 11
    assert latest_half(steps, 100) is None and latest_half([]) is None
    assert share_of_starts(160, 8, 60) < 0.1 and share_of_starts(160, 8, 20, agreement=0.75) == 1


def test_settings_of_the_first_step_are_as_they_were(tmp_path):
    args = arguments(tmp_path)
    assert "aux_start" not in args.loss_settings("confidence")
    args = arguments(tmp_path, aux_start="agreement")
    assert args.loss_settings("confidence")["aux_start"] == "agreement"
    assert "aux_start" not in args.loss_settings("xent")
    with pytest.raises(ValueError, match="aux_start: got 'epoch', expected 'first_step' or 'agreement'"):
        arguments(tmp_path, aux_start="epoch")


def test_steps_that_read_no_start_have_the_keys_that_they_had(tmp_path):
    def settings(**options) -> dict:
        args = arguments(tmp_path, **{"bf16": False, **options})
        return Finetuner(StageCache(tmp_path), CLASSIFICATION, args).settings_of({"loss_type": options["loss_type"]})

    assert "aux_start" not in settings(loss_type="confidence")
    assert "aux_start" not in settings(loss_type="xent", aux_start="agreement")
    assert settings(loss_type="confidence", aux_start="agreement")["aux_start"] == "agreement"
    # Another loss of the students does not train the supervisor or the ceiling again.
    changed = {"aux_coef": 0.7, "aux_warmup_ratio": 1.0, "window_radius": 0.3, "product_beta": 2.0}
    assert settings(loss_type="xent", **changed) == settings(loss_type="xent")
    of_window = settings(loss_type="window", **changed)
    assert of_window == settings(loss_type="window") | {"window_radius": "0.3"}
