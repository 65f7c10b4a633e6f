"""Tests RewardPairTrainer: equal to TRL's RewardTrainer for hard labels, symmetric, and one prediction per pair."""

import math
from functools import partial

import numpy as np
import pytest
import torch
from datasets import Dataset
from helpers.models import make_model, make_tokenizer
from helpers.training import LORA, make_pairs, pair_arguments, reward_model, train_pairs, with_supervisors
from peft import LoraConfig, PeftModel
from transformers import BitsAndBytesConfig, LlamaForCausalLM
from trl import RewardConfig, RewardTrainer

from w2s_hf import RewardPairConfig, RewardPairTrainer, fresh_adapter, load_student
from w2s_hf.collators import RewardPairCollator, sorted_lengths, split_by_tokens
from w2s_hf.losses import LOSS_TYPES


def swapped(pairs: Dataset, every: int = 1) -> Dataset:
    """Swaps chosen and rejected, and replaces p by 1 - p, in every pair or every `n`-th pair."""

    def swap(row: dict, number: int) -> dict:
        if number % every:
            return row
        sides = {"chosen_ids": row["rejected_ids"], "rejected_ids": row["chosen_ids"]}
        sides |= {"soft_label": 1 - row["soft_label"]} if "soft_label" in row else {}
        of_each = row.get("supervisor_labels")
        return sides | ({} if of_each is None else {"supervisor_labels": [labels[::-1] for labels in of_each]})

    return pairs.map(swap, with_indices=True)


def assert_same(left, right):
    assert left.std(dim=0).min() > 1e-3, "all steps are equal, so the test is trivial"
    torch.testing.assert_close(left, right, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", ["llama", "gpt2", "bert"])
def test_without_soft_labels_it_is_trls_trainer_and_with_all_of_them_1_too(tmp_path, kind):
    pairs = make_pairs(24)
    theirs, reference = train_pairs(tmp_path, pairs, RewardTrainer, reward_model(kind))
    ours, trajectory = train_pairs(tmp_path, pairs, model=reward_model(kind))
    assert torch.equal(reference, trajectory)
    for name, value in theirs.model.state_dict().items():
        assert torch.equal(value, ours.model.state_dict()[name]), name
    _, trajectory = train_pairs(tmp_path, make_pairs(24, 1.0), model=reward_model(kind))
    assert_same(reference, trajectory)
    logged = [set(entry) for entry in (theirs.state.log_history[0], ours.state.log_history[0])]
    assert logged[0] == logged[1] and {"accuracy", "margin", "num_tokens"} <= logged[0]


def test_margin_and_centering_are_trls(tmp_path):
    pairs = make_pairs(24).add_column("margin", np.random.default_rng(1).random(24).tolist())
    _, reference = train_pairs(tmp_path, pairs, RewardTrainer, center_rewards_coefficient=0.1)
    _, trajectory = train_pairs(tmp_path, pairs, center_rewards_coefficient=0.1)
    assert torch.equal(reference, trajectory)
    centered = train_pairs(tmp_path, make_pairs(24, 1.0), center_rewards_coefficient=0.1)[1]
    assert_same(train_pairs(tmp_path, make_pairs(24), RewardTrainer, center_rewards_coefficient=0.1)[1], centered)


@pytest.mark.parametrize(
    ("soft_label", "loss_type", "message"),
    [
        (1.0, "xent", "columns `soft_label` and `margin`"),
        (None, "entropy", "Got a margin, expected no margin, since the loss 'entropy' on soft labels does not use it"),
    ],
    ids=["soft labels", "loss"],
)
def test_a_margin_that_is_not_read_is_refused(soft_label, loss_type, message, tmp_path):
    pairs = make_pairs(24, soft_label).add_column("margin", [0.5] * 24)
    with pytest.raises(ValueError, match=message):
        train_pairs(tmp_path, pairs, loss_type=loss_type)
    if soft_label is None:
        args, options = pair_arguments(tmp_path), {"processing_class": make_tokenizer()}
        trainer = RewardPairTrainer(reward_model(), args, train_dataset=pairs, loss=lambda *args: None, **options)
        with pytest.raises(ValueError, match="since the argument loss on soft labels does not use it"):
            trainer.train()


def test_the_loss_is_the_one_in_the_docstring(tmp_path):
    """
    Checks -(p log sigmoid(d) + (1 - p) log sigmoid(-d)) at d = 2 and p = 0.3, with a centering term of (r + r')^2.
    """
    trainer = RewardPairTrainer(
        model=reward_model(),
        args=pair_arguments(tmp_path),
        train_dataset=make_pairs(2),
        processing_class=make_tokenizer(),
    )
    rewards = torch.tensor([[1.5], [-0.5]])

    class Fixed(torch.nn.Module):
        def forward(self, **inputs):
            return type("Output", (), {"logits": rewards})()

    batch = {"input_ids": torch.ones(2, 3), "attention_mask": torch.ones(2, 3), "soft_label": torch.tensor([0.3])}
    expected = 0.3 * math.log(1 + math.exp(-2)) + 0.7 * math.log(1 + math.exp(2))
    assert trainer.compute_loss(Fixed(), batch).item() == pytest.approx(expected, rel=1e-6)
    trainer.args.center_rewards_coefficient = 0.5
    assert trainer.compute_loss(Fixed(), batch).item() == pytest.approx(expected + 0.5, rel=1e-6)


@pytest.mark.parametrize("every", [1, 2])
@pytest.mark.parametrize("loss_type", LOSS_TYPES)
def test_exchanging_the_sides_changes_nothing(tmp_path, loss_type, every):
    pairs = make_pairs(24, "random")
    pairs = with_supervisors(pairs) if loss_type == "learned_supervisors" else pairs
    options = {"loss_type": loss_type, "aux_warmup_ratio": 0.5, "window_radius": 0.4}
    _, reference = train_pairs(tmp_path, pairs, **options)
    _, trajectory = train_pairs(tmp_path, swapped(pairs, every), **options)
    assert_same(reference, trajectory)


@pytest.mark.parametrize("loss_type", ["xent", "confidence", "reverse_kl", "symmetric", "cace"])
@pytest.mark.parametrize(
    "cut",
    [
        {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 4},
        {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 8},
        {"max_tokens_per_micro_batch": 80},
    ],
    ids=["2x4", "1x8", "tokens"],
)
def test_the_cut_of_a_step_changes_nothing(tmp_path, loss_type, cut):
    pairs = make_pairs(24, "random")
    options = {"loss_type": loss_type, "aux_warmup_ratio": 0.0}
    assert_same(train_pairs(tmp_path, pairs, **options)[1], train_pairs(tmp_path, pairs, **options, **cut)[1])


def test_a_short_last_batch_counts_by_its_pairs(tmp_path):
    """A step of 10 pairs in batches of 4, 4 and 2 has the mean loss of 10 pairs, not of 3 batches."""
    pairs = make_pairs(10, "random")
    options = {"max_steps": -1, "num_train_epochs": 2}
    whole = train_pairs(tmp_path, pairs, per_device_train_batch_size=10, **options)[1]
    cut = train_pairs(tmp_path, pairs, per_device_train_batch_size=4, gradient_accumulation_steps=3, **options)[1]
    assert_same(whole, cut)


def test_the_threshold_does_not_read_which_side_is_chosen(tmp_path):
    """
    The expected values are calculated by hand with a = 1 and all labels 1. In the order of the dataset, all pairs but
    the last would be hardened to their labels. In the order of `turned`, half of the pairs are hardened to each side.
    """
    pairs = make_pairs(32, 1.0)
    turned = RewardPairCollator(pad_token_id=0)(pairs.to_list())["turned"]
    assert 8 <= turned.sum() <= 24
    assert torch.equal(RewardPairCollator(pad_token_id=0)(swapped(pairs).to_list())["turned"], ~turned)
    options = {"aux_coef": 1.0, "aux_warmup_ratio": 0.0, "per_device_train_batch_size": 32, "max_steps": 1}
    trainer, trajectory = train_pairs(tmp_path, pairs, loss_type="confidence", learning_rate=0.0, **options)
    rewards = torch.from_numpy(trainer.predict(pairs).predictions)
    difference = torch.where(turned, -1, 1) * (rewards[:, 1] - rewards[:, 0])
    n_first_better = int((~turned).sum())  # the labels have this prior
    threshold = difference.sigmoid().quantile(1 - n_first_better / 32)
    signs = torch.where(difference.sigmoid() > threshold, 1, -1)
    assert 4 < (signs != torch.where(turned, -1, 1)).sum(), "the hard targets contradict some labels"
    expected = -torch.nn.functional.logsigmoid(signs * difference).mean()
    assert trajectory[0, 0].item() == pytest.approx(expected.item(), rel=1e-4)


def test_ten_pairs_predict_as_ten_rows_in_order(tmp_path):
    trainer, _ = train_pairs(tmp_path, make_pairs(24, "random"), per_device_eval_batch_size=4)
    pairs = make_pairs(10, "random", seed=5)
    output = trainer.predict(pairs)
    assert output.predictions.shape == (10, 2) and output.label_ids.shape == (10,)
    np.testing.assert_allclose(output.label_ids, pairs["soft_label"], rtol=1e-6)
    rewards = [
        [trainer.model(input_ids=torch.tensor([row[side]])).logits.item() for side in ("rejected_ids", "chosen_ids")]
        for row in pairs
    ]
    np.testing.assert_allclose(output.predictions, rewards, atol=1e-5)
    probabilities = trainer.predict_proba(pairs)
    difference = output.predictions[:, 1] - output.predictions[:, 0]
    np.testing.assert_allclose(probabilities[:, 1], 1 / (1 + np.exp(-difference)), rtol=1e-5)
    np.testing.assert_allclose(trainer.predict_proba(swapped(pairs)), probabilities[:, ::-1], atol=1e-6)
    assert trainer.predict(make_pairs(10)).label_ids.tolist() == [1.0] * 10


def test_evaluation_is_plain_cross_entropy_on_soft_labels(tmp_path):
    pairs = make_pairs(12, "random", seed=3)
    results = [
        train_pairs(tmp_path, make_pairs(24, "random"), learning_rate=0.0, loss_type=name)[0].evaluate(pairs)
        for name in ("xent", "confidence")
    ]
    assert results[0]["eval_loss"] == pytest.approx(results[1]["eval_loss"])


def test_metrics_are_against_the_labels_and_the_users_own_win(tmp_path):
    """
    The best checkpoint depends on these metrics. TRL's `accuracy` would ignore the labels and use the dataset's order.
    """
    pairs = make_pairs(20, 0.0, seed=3)  # the rejected response is always better
    trainer, _ = train_pairs(tmp_path, make_pairs(24, "random"), learning_rate=0.0, per_device_eval_batch_size=8)
    trainer.predict(make_pairs(9, 1.0))  # must not change the next evaluation
    right = np.diff(trainer.predict(pairs).predictions)[:, 0] < 0
    by_batch = np.mean([right[:8].mean(), right[8:16].mean(), right[16:].mean()])
    trainer.evaluate(pairs)
    assert trainer.state.log_history[-1]["eval_accuracy"] == pytest.approx(by_batch)
    trainer.compute_metrics = lambda prediction: {"accuracy": 0.123, "n": len(prediction.label_ids)}
    for metrics in (trainer.evaluate(pairs), trainer.state.log_history[-1]):
        assert (metrics["eval_accuracy"], metrics["eval_n"]) == (0.123, 20)
    assert "eval_margin" in trainer.state.log_history[-1]


TEXT = {"chosen": "w1 w2 w3", "rejected": "w1 w2 w4 w5"}


def trainer_on(tmp_path, rows, tokenizer=None, **kwargs):
    return RewardPairTrainer(
        model=reward_model(),
        args=pair_arguments(tmp_path, **kwargs),
        train_dataset=Dataset.from_list(rows) if isinstance(rows, list) else rows,
        processing_class=make_tokenizer() if tokenizer is None else tokenizer,
    )


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"chosen": "w1", "reject": "w2"}], "got no column 'rejected' .columns: chosen, reject"),
        ([{**TEXT, "soft_label": 0.5}, {**TEXT, "soft_label": 1.5}], r"train_dataset: soft_label: .*row 1, expected"),
        ([{**TEXT, "soft_label": float("nan")}], "soft_label: got NaN or infinity in row 0"),
        ([{**TEXT, "soft_label": [0.5, 0.5]}], "soft_label: got shape .1, 2., expected one P.chosen better. per row"),
        ([{**TEXT, "soft_label": None}], "row 0 without a label"),
        (Dataset.from_dict({"chosen": [], "rejected": []}), "train_dataset: got no rows"),
        ([{"chosen": "w1 " * 40, "rejected": "w2"}], "all 1 pairs are longer than max_length=30"),
    ],
)
def test_bad_pairs_are_refused_before_training(tmp_path, rows, message):
    with pytest.raises(ValueError, match=message):
        trainer_on(tmp_path, rows, max_length=30)


def test_what_is_left_out_or_teaches_nothing_is_counted(tmp_path, caplog):
    rows = [TEXT, {"chosen": "w1 " * 40, "rejected": "w2"}, {"chosen": "w1", "rejected": "w1"}, {**TEXT, "chosen": ""}]
    rows = [{**row, "soft_label": p} for row, p in zip(rows, (0.1, 0.2, 0.3, 0.4), strict=True)]
    trainer = trainer_on(tmp_path, rows, max_length=30)
    assert trainer.train_dataset["soft_label"][:] == [0.1, 0.3, 0.4]  # a dropped pair takes its label with it
    for message in (
        "train_dataset: 1 of 4 pairs have identical responses",
        "train_dataset: 1 of 4 pairs have an empty response",
        "train_dataset: 1 of 4 pairs are longer than max_length=30 tokens and are left out",
    ):
        assert message in caplog.text
    with pytest.raises(ValueError, match=r"1 of 4 pairs are longer than max_length=30 tokens \(row 1 has 41\)"):
        trainer.predict_proba(Dataset.from_list(rows))
    trainer.args.max_length = None
    assert trainer.predict_proba(Dataset.from_list(rows)).shape == (4, 2)


def test_text_needs_an_end_of_text_token(tmp_path):
    tokenizer = make_tokenizer()
    tokenizer.eos_token = None
    with pytest.raises(
        ValueError, match="without an end-of-text token, expected a token to end.* Set processing_class.eos_token"
    ):
        trainer_on(tmp_path, [TEXT], tokenizer)


@pytest.mark.parametrize(
    ("model", "config", "adapters", "message"),
    [
        (reward_model, RewardConfig, None, "got a RewardConfig, expected a RewardPairConfig"),
        (
            reward_model, RewardPairConfig, LoraConfig(task_type="CAUSAL_LM", target_modules="all-linear"),
            "task_type CAUSAL_LM, expected SEQ_CLS",
        ),
        (partial(make_model, "llama"), RewardPairConfig, None, "num_labels"),
    ],
    ids=["config", "adapters", "model"],
)  # fmt: skip
def test_what_does_not_fit_is_refused(model, config, adapters, message, tmp_path):
    options = {"train_dataset": make_pairs(4), "processing_class": make_tokenizer(), "peft_config": adapters}
    with pytest.raises(ValueError, match=message):
        RewardPairTrainer(model(), pair_arguments(tmp_path, config), **options)


@pytest.mark.skipif(not hasattr(RewardConfig, "train_sampling_strategy"), reason="TRL without this option")
def test_pairs_are_not_grouped_by_length(tmp_path):
    with pytest.raises(ValueError, match="got 'group_by_length', which does not work for pairs"):
        pair_arguments(tmp_path, train_sampling_strategy="group_by_length")


def test_adapters_without_a_task_type_are_those_of_a_classifier(tmp_path):
    options = {"train_dataset": make_pairs(4), "processing_class": make_tokenizer()}
    untyped = LoraConfig(target_modules="all-linear", r=4)
    trainer = RewardPairTrainer(reward_model(), pair_arguments(tmp_path), peft_config=untyped, **options)
    trainable = [name for name, parameter in trainer.model.named_parameters() if parameter.requires_grad]
    assert any("score.modules_to_save" in name for name in trainable) and untyped.task_type is None


def test_a_4_bit_student_by_name_learns_saves_and_loads(tmp_path):
    quantization = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4")
    base = LlamaForCausalLM(make_model("llama").config)
    base.save_pretrained(tmp_path / "base")
    make_tokenizer().save_pretrained(tmp_path / "base")
    trainer = RewardPairTrainer(
        model=str(tmp_path / "base"),
        args=pair_arguments(tmp_path / "out", loss_type="confidence"),
        train_dataset=make_pairs(24, "random"),
        quantization_config=quantization,
        peft_config=LORA,
    )
    trainable = {name: p for name, p in trainer.model.named_parameters() if p.requires_grad}
    assert {p.dtype for p in trainable.values()} == {torch.float32}, "TRL makes them bfloat16"
    assert any("score" in name for name in trainable) and any("lora_" in name for name in trainable)
    assert trainer.model.base_model.model.model.layers[0].mlp.up_proj.base_layer.weight.dtype == torch.uint8
    before = {name: p.detach().clone() for name, p in trainable.items()}
    trainer.train()
    assert all(not torch.equal(p, before[name]) for name, p in trainable.items() if "lora_A" not in name)
    pairs = make_pairs(6)
    expected = trainer.predict_proba(pairs)
    trainer.save_model(str(tmp_path / "student"))
    make_tokenizer().save_pretrained(tmp_path / "student")
    student = load_student(
        str(tmp_path / "student"), task_type="REWARD", quantization_config=quantization, is_trainable=True
    )
    again = RewardPairTrainer(
        model=student, args=pair_arguments(tmp_path), train_dataset=pairs, processing_class=make_tokenizer()
    )
    np.testing.assert_allclose(again.predict_proba(pairs), expected, atol=1e-5)
    assert np.abs(expected - 0.5).max() > 0.01


def test_killed_and_resumed_is_uninterrupted(tmp_path):
    pairs = make_pairs(48, "random")
    options = {"loss_type": "confidence", "max_steps": 6, "save_strategy": "steps", "save_steps": 3}
    model = fresh_adapter(reward_model(), LORA, seed=0)
    whole, _ = train_pairs(tmp_path / "whole", pairs, model=model, **options)
    model = fresh_adapter(reward_model(), LORA, seed=0)
    resumed = RewardPairTrainer(
        model=model,
        args=pair_arguments(tmp_path / "resumed", **options),
        train_dataset=pairs,
        processing_class=make_tokenizer(),
    )
    resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-3"))
    assert isinstance(resumed.model, PeftModel)
    for name, value in whole.model.state_dict().items():
        assert torch.equal(value, resumed.model.state_dict()[name]), name


def test_pairs_are_cut_by_tokens_and_stay_together():
    pairs = make_pairs(16, "random")
    batch = RewardPairCollator(pad_token_id=0)(pairs.to_list())
    rows = {tuple(row["chosen_ids"]): row for row in pairs}
    lengths, _ = sorted_lengths(batch, 2)
    for planned in (None, lengths + 3):
        parts = split_by_tokens(batch, 150, n_sequences=2, lengths=planned)
        assert len(parts) > 2
        found = 0
        for part in parts:
            n = len(part["soft_label"])
            assert part["attention_mask"].numel() <= 150 or n == 1
            ids = [
                row[mask.bool()].tolist() for row, mask in zip(part["input_ids"], part["attention_mask"], strict=True)
            ]
            for chosen, rejected, p in zip(ids[:n], ids[n:], part["soft_label"], strict=True):
                row = rows[tuple(chosen)]
                assert rejected == row["rejected_ids"] and p.item() == pytest.approx(row["soft_label"])
            found += n
        assert found == 16


def test_adapters_are_not_stacked(tmp_path):
    model = fresh_adapter(reward_model(), LORA)
    with pytest.raises(ValueError, match="a model that already has adapters"):
        RewardPairTrainer(
            model,
            pair_arguments(tmp_path),
            train_dataset=make_pairs(4),
            processing_class=make_tokenizer(),
            peft_config=LORA,
        )
