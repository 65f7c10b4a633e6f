"""Small trainings with all trainers, their rows and their arguments."""

import copy

import numpy as np
import torch
from datasets import Dataset
from peft import LoraConfig
from transformers import (
    TrainerCallback,
    set_seed,
)
from trl import RewardConfig

from helpers.models import make_model, make_rows, make_tokenizer
from w2s_hf import (
    CompletionConfig,
    RewardPairConfig,
    RewardPairTrainer,
    WeakToStrongConfig,
    WeakToStrongTrainer,
)

STEPS = 3
LORA = LoraConfig(task_type="SEQ_CLS", target_modules="all-linear", r=4)


class Record(TrainerCallback):
    """Records loss and gradient norm of every optimizer step."""

    def __init__(self):
        self.trajectory = []

    def on_log(self, args, state, control, logs=None, **kwargs):
        if "grad_norm" in logs:
            self.trajectory.append((logs["loss"], float(logs["grad_norm"])))


def with_weights(rows: Dataset, weights=None) -> Dataset:
    """Returns rows with a column `weight`, by default of random numbers in [0, 2) and one 0."""
    if weights is None:
        weights = 2 * np.random.default_rng(7).random(len(rows))
        weights[1] = 0
    return rows.add_column("weight", [float(weight) for weight in weights])


def with_supervisors(rows: Dataset, n_supervisors: int = 3, seed: int = 5) -> Dataset:
    """Returns rows with a column `supervisor_labels` of random probabilities of two classes."""
    p = np.random.default_rng(seed).random((len(rows), n_supervisors))
    return rows.add_column("supervisor_labels", np.stack([1 - p, p], axis=2).tolist())


def arguments(tmp_path, cls=WeakToStrongConfig, **kwargs):
    defaults = {
        "output_dir": str(tmp_path),
        "use_cpu": True,
        "max_steps": STEPS,
        "logging_steps": 1,
        "learning_rate": 1e-2,
        "lr_scheduler_type": "constant",
        "report_to": "none",
        "save_strategy": "no",
        "per_device_train_batch_size": 8,
        "disable_tqdm": True,
    }
    return cls(**(defaults | kwargs))


def train(model, tokenizer, tmp_path, rows=None, *, trainer_class=WeakToStrongTrainer, **kwargs):
    record = Record()
    trainer = trainer_class(
        model=model,
        args=arguments(tmp_path, **kwargs),
        train_dataset=make_rows(24) if rows is None else rows,
        processing_class=tokenizer,
        callbacks=[record],
    )
    trainer.train()
    return trainer, torch.tensor(record.trajectory)


class Stop(TrainerCallback):
    """Stops a training after the checkpoint of a step, as if the process was killed."""

    def __init__(self, step: int):
        self.step = step

    def on_save(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            raise KeyboardInterrupt


def rows_of(n: int, first: int = 0) -> Dataset:
    """Returns rows whose completion repeats the last letter of the prompt."""
    words = [f"{'abcdefgh'[number % 8] * (1 + number % 5)}{'xyz'[number % 3]}" for number in range(first, first + n)]
    return Dataset.from_dict({"prompt": [f"{word}:" for word in words], "completion": [f" {w[-1]}" for w in words]})


def completion_arguments(tmp_path, kind=CompletionConfig, **options):
    options = {
        "output_dir": str(tmp_path), "per_device_train_batch_size": 8, "learning_rate": 3e-3, "max_steps": 4,
        "logging_steps": 1, "save_strategy": "no", "report_to": "none", "use_cpu": True, "bf16": False,
        "gradient_checkpointing": False, "lr_scheduler_type": "constant", **options,
    }  # fmt: skip
    if kind is CompletionConfig:
        options.setdefault("max_new_tokens", 4)
    return kind(**options)


def reward_model(kind: str = "llama"):
    model = make_model(kind)
    config = copy.deepcopy(model.config)
    config.num_labels = 1
    set_seed(0)
    return type(model)(config)


def make_pairs(n: int, soft_label=None, seed: int = 0) -> Dataset:
    """Returns `n` pairs of random tokens of mixed length. `soft_label` is a number for all pairs, or `"random"`."""
    rng = np.random.default_rng(seed)
    sides = {
        name: [rng.integers(4, 64, rng.integers(3, 30)).tolist() for _ in range(n)]
        for name in ("chosen_ids", "rejected_ids")
    }
    if soft_label is not None:
        sides["soft_label"] = rng.random(n).tolist() if soft_label == "random" else [soft_label] * n
    return Dataset.from_dict(sides)


def pair_arguments(tmp_path, cls=RewardPairConfig, **kwargs):
    return arguments(
        tmp_path, cls, **({"bf16": False, "gradient_checkpointing": False, "max_grad_norm": 1e9} | kwargs)
    )


def train_pairs(tmp_path, pairs, cls=RewardPairTrainer, model=None, **kwargs):
    """Trains, and returns the trainer with loss and gradient norm of every step."""
    record = Record()
    config = RewardPairConfig if cls is RewardPairTrainer else RewardConfig
    trainer = cls(
        model=reward_model() if model is None else model,
        args=pair_arguments(tmp_path, config, **kwargs),
        train_dataset=pairs,
        processing_class=make_tokenizer(),
        callbacks=[record],
    )
    trainer.train()
    return trainer, torch.tensor(record.trajectory)
