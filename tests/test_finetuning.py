"""Tests a finetuning that is interrupted between its steps."""

import json
from types import SimpleNamespace
from unittest import mock

import numpy as np
import pytest
import torch
from datasets import ClassLabel, Dataset, Value
from helpers.finetuners import finetuner_of, rows_of, splits_of
from helpers.models import make_model, make_rows, make_tokenizer
from helpers.training import arguments
from transformers import TrainerCallback

from w2s_hf import WeakToStrongTrainer
from w2s_hf.config import StudentConfig
from w2s_hf.experiments.cache import StageCache
from w2s_hf.experiments.finetuner import Finetuned, Finetuner, _prepare_to_predict, save_training
from w2s_hf.experiments.settings.classification import CLASSIFICATION
from w2s_hf.modeling.spec import ModelSpec
from w2s_hf.tasks import Half


def test_checkpoints_are_removed_when_all_ranks_have_loaded_the_best_one(tmp_path):
    (tmp_path / "checkpoints" / "checkpoint-1").mkdir(parents=True)
    (tmp_path / "model").mkdir()
    trainer, tokenizer = mock.MagicMock(), mock.MagicMock()
    trainer.state.log_history = []
    there = []
    trainer.accelerator.wait_for_everyone.side_effect = lambda: there.append((tmp_path / "checkpoints").is_dir())
    save_training(trainer, tokenizer, tmp_path)
    assert there == [True] and not (tmp_path / "checkpoints").exists()


def finetune(finetuner: Finetuner, rows: Dataset, model: ModelSpec) -> Finetuned:
    labelled = finetuner.setting.with_ground_truth(rows)
    return finetuner.finetune("weak", model, Half(labelled, labelled), [rows], splits=splits_of(), seed=0)


def watch(monkeypatch, finetuner: Finetuner) -> list[list[torch.Tensor]]:
    """Collects the weights and the precision of each labelling."""
    used, answer = [], type(finetuner.setting).predict

    def watched(self, trainer, *args):
        weights = [value.detach().clone() for value in trainer.model.parameters() if value.is_floating_point()]
        dtypes = []
        linear = next(m for n, m in trainer.model.named_modules() if n.endswith("q_proj"))
        handle = linear.register_forward_hook(lambda module, inputs, output: dtypes.append(output.dtype))
        answers = answer(self, trainer, *args)
        handle.remove()
        used.append([*weights, torch.tensor([dtype == torch.bfloat16 for dtype in dtypes])])
        return answers

    monkeypatch.setattr(type(finetuner.setting), "predict", watched)
    return used


@pytest.mark.parametrize(
    ("kind", "precision"),
    [
        ("classification", "adapters on 4 bits"),
        ("classification", "all weights"),
        ("reward", "adapters on 4 bits"),
        ("chess", "adapters"),
        ("chess", "adapters on 4 bits"),
        ("chess", "all weights in bfloat16"),
    ],
)
def test_stopped_while_it_labels_it_is_not_trained_again(kind, precision, tmp_path, monkeypatch):
    finetuner, rows = finetuner_of(kind, tmp_path, tmp_path / "model")
    finetuner.args.bf16 = "bfloat16" in precision
    config = StudentConfig(
        use_peft="adapters" in precision, load_in_4bit="4 bits" in precision, dtype="float32", lora_r=4
    )
    model = ModelSpec("m", str(tmp_path / "model"), "1", config)
    used = watch(monkeypatch, finetuner)
    expected = finetune(finetuner, rows, model).predictions

    other = Finetuner(StageCache(tmp_path / "others"), finetuner.setting, finetuner.args)

    def stopped(*args, **kwargs):
        raise KeyboardInterrupt

    with monkeypatch.context() as context:
        context.setattr(type(finetuner.setting), "predict", stopped)
        with pytest.raises(KeyboardInterrupt):
            finetune(other, rows, model)
    (partial,) = (tmp_path / "others").glob("*.partial")
    assert (partial / "training.json").is_file() and not (partial / "checkpoints").exists()
    assert not (partial / "predictions").exists()
    with monkeypatch.context() as context:
        context.setattr("transformers.Trainer.train", stopped)
        finetuned = finetune(other, rows, model)
    found = finetuned.predictions
    for one, two in zip(*used, strict=True):
        assert torch.equal(one, two), "it labelled with other weights, or in another precision"
    assert found.ids == expected.ids and not list((tmp_path / "others").glob("*.partial"))
    if kind == "chess":
        assert found.completions == expected.completions and len({made.text for made in found.completions}) > 1
        assert not (finetuned.directory / "completions").exists()
    else:
        np.testing.assert_allclose(found.probabilities, expected.probabilities, atol=1e-6)
        assert found.probabilities[:, 1].std() > 1e-3


def test_ground_truth_in_training_rows_is_refused(tmp_path):
    finetuner = Finetuner(StageCache(tmp_path), CLASSIFICATION, None)
    rows = rows_of("classification")
    with pytest.raises(ValueError, match="got training rows with the column `ground_truth`"):
        finetuner.finetune("weak", ModelSpec("m", "m", "1"), Half(rows, rows), [rows], splits=splits_of(), seed=0)


@pytest.mark.parametrize("feature", [Value("int64"), Value("int32"), ClassLabel(names=["no", "yes"])], ids=str)
def test_true_labels_of_any_integer_type_become_int64(feature):
    rows = Dataset.from_dict({"ground_truth": [1, 0, 1]}).cast_column("ground_truth", feature)
    labelled = CLASSIFICATION.with_ground_truth(rows)
    assert labelled.features == {"labels": Value("int64")} and labelled["labels"][:] == [1, 0, 1]


def test_an_engine_prepares_a_finished_model_and_trains_nothing(tmp_path):
    """FSDP and DeepSpeed predict only with models that are prepared together with an optimizer."""
    reports = []

    class Listens(TrainerCallback):
        def on_log(self, args, state, control, logs=None, **kwargs):
            reports.append(logs)

        def on_evaluate(self, *args, **kwargs):
            reports.append("evaluated")

    rows = make_rows(16)
    trainer = WeakToStrongTrainer(
        model=make_model("llama"), args=arguments(tmp_path, eval_strategy="epoch", max_steps=5), train_dataset=rows,
        eval_dataset=rows, processing_class=make_tokenizer(), callbacks=[Listens()],
    )  # fmt: skip
    before = [parameter.detach().clone() for parameter in trainer.model.parameters()]
    _prepare_to_predict(trainer)
    assert trainer.optimizer is None, "no engine: nothing to prepare"
    train = trainer.train

    def train_without_fsdp():  # there is none here
        trainer.is_fsdp_enabled = False
        return train()

    trainer.is_fsdp_enabled, trainer.train = True, train_without_fsdp
    _prepare_to_predict(trainer)
    assert trainer.optimizer is not None and trainer.state.global_step == 0
    assert "evaluated" not in reports
    assert all(torch.equal(old, new) for old, new in zip(before, trainer.model.parameters(), strict=True))


def test_only_fsdp_needs_ranks_that_cut_alike(tmp_path):
    trainer = WeakToStrongTrainer(model=make_model("llama"), args=arguments(tmp_path))
    for is_fsdp_enabled, n_ranks in ((False, 2), (True, 1), (True, 2)):
        trainer.is_fsdp_enabled = is_fsdp_enabled
        with mock.patch.object(type(trainer.accelerator), "num_processes", n_ranks):
            assert trainer._ranks_cut_alike == (is_fsdp_enabled and n_ranks == 2)


@pytest.mark.parametrize(
    ("kind", "best"), [("classification", "accuracy"), ("reward", "eval_weak_agreement"), ("chess", "weak_agreement")]
)
def test_agreement_with_weak_labels_is_not_called_accuracy(kind, best, tmp_path):
    """`metric_for_best_model` accepts both names of the metric."""
    finetuner, rows = finetuner_of(kind, tmp_path, tmp_path / "model")
    steps = {"max_steps": 2, "eval_strategy": "steps", "eval_steps": 1, "save_strategy": "steps", "save_steps": 1}
    for name, value in {**steps, "logging_steps": 1, "metric_for_best_model": best}.items():
        setattr(finetuner.args, name, value)
    finetuner.args.load_best_model_at_end = finetuner.args.greater_is_better = True
    model = ModelSpec("m", str(tmp_path / "model"), "1", StudentConfig(dtype="float32", lora_r=4))
    truth = finetuner.setting.with_ground_truth(rows)
    weak_labels = SimpleNamespace(provenance={"stage": "weak", "model": "m"}, fingerprint="0")
    for name, is_weak in (("accuracy", False), ("weak_agreement", True)):
        labels = {"student": weak_labels} if is_weak else None
        half = Half(truth, truth)
        stage = finetuner.finetune(name, model, half, [rows], splits=splits_of(), seed=0, labels=labels).directory
        logged = {key for entry in json.loads((stage / "training.json").read_text()) for key in entry}
        other = {"accuracy", "weak_agreement"} - {name}
        assert f"eval_{name}" in logged and not {*other, *(f"eval_{key}" for key in other)} & logged
        assert (name in logged) == (kind == "reward")  # TRL's reward trainer also logs it for training batches
        assert StageCache.record(stage)["settings"]["args"]["metric_for_best_model"] == name


@pytest.mark.parametrize("use_peft", [False, True])
def test_classes_have_the_names_of_the_task(use_peft, tmp_path, monkeypatch):
    finetuner, rows = finetuner_of("classification", tmp_path, tmp_path / "model")
    model = ModelSpec("m", str(tmp_path / "model"), "1", StudentConfig(dtype="float32", lora_r=4, use_peft=use_peft))
    truth, seen, make_trainer = finetuner.setting.with_ground_truth(rows), [], type(finetuner.setting).make_trainer

    def watched(self, network, *args):
        seen.append(network.config.id2label | network.config.label2id)
        return make_trainer(self, network, *args)

    monkeypatch.setattr(type(finetuner.setting), "make_trainer", watched)
    for names in (("ham", "spam"), ("no", "yes")):  # one base serves both
        half = Half(truth, truth)
        stage = finetuner.finetune("s", model, half, [rows], splits=splits_of(names), seed=0).directory
        assert seen[-1] == {0: names[0], 1: names[1], names[0]: 0, names[1]: 1}
        if not use_peft:
            saved = json.loads((stage / "model" / "config.json").read_text())
            assert saved["id2label"] == {"0": names[0], "1": names[1]} and saved["label2id"][names[1]] == 1
