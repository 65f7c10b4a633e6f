"""Trainings with numbers of rows that do not divide by the ranks. distributed_script.py runs them on 1 and 2 ranks."""

import contextlib
from functools import cache
from pathlib import Path

import torch
from datasets import Dataset
from transformers import TrainerCallback, set_seed

from helpers.chains import student
from helpers.models import make_character_tokenizer, make_language_model, make_rows, make_tokenizer
from helpers.training import Record, Stop, arguments, make_pairs, rows_of, with_supervisors, with_weights
from w2s_hf import (
    BootstrapConfig,
    BootstrapTrainer,
    CompletionConfig,
    CompletionTrainer,
    RewardPairConfig,
    RewardPairTrainer,
    WeakToStrongConfig,
    WeakToStrongTrainer,
)
from w2s_hf.losses import LOSS_ARGUMENTS, LOSS_TYPES

ROWS = (5, 10, 11, 21)
OPTIONS = {
    "max_steps": -1, "num_train_epochs": 1, "optim": "sgd", "learning_rate": 0.1, "bf16": False,
    "gradient_checkpointing": False,
}  # fmt: skip
LOSSES = [{"loss_type": name, "aux_warmup_ratio": 0.5, "window_radius": 0.3} for name in LOSS_TYPES]
# The reverse losses are functions of one row. Besides the cuts of a step, one number of rows is enough for them, and
# for the learned supervisors.
OTHERS = [
    loss
    for loss in LOSSES
    if not {"reverse_smoothing", "supervisor_learning_rate"} & {*LOSS_ARGUMENTS[loss["loss_type"]]}
]
ACCUMULATED = {"gradient_accumulation_steps": 2, "rows_per_step": 4}
TOKENS = {"max_tokens_per_micro_batch": 60}
BY_LENGTH = {"train_sampling_strategy": "group_by_length"}


def configurations() -> list[tuple[str, int, dict]]:
    """
    Returns trainer, number of rows and options. `rows_per_step` is the total of all ranks (8 by default). `weights`
    adds weights to the training rows.
    """
    # The second epoch has another order of rows, and continues from the weights of the first.
    twice = {"num_train_epochs": 2, "eval_strategy": "epoch"}
    confidence, soft = LOSSES[LOSS_TYPES.index("confidence")], {"soft_label": "random"}
    supervisors = LOSSES[LOSS_TYPES.index("learned_supervisors")]
    cases = [("chain", 11, twice)]
    for n_rows in ROWS:
        more = twice if n_rows == 11 else {}
        of_rows = LOSSES if n_rows == 11 else OTHERS
        cases += [("classes", n_rows, loss | more) for loss in of_rows]
        cases += [("pairs", n_rows, loss | soft | more) for loss in of_rows]
        cases += [("pairs", n_rows, {"center_rewards_coefficient": 0.1} | more), ("completions", n_rows, more)]
    for n_rows, cut in ((21, ACCUMULATED), (11, TOKENS)):
        cases += [("classes", n_rows, loss | cut) for loss in LOSSES]
        cases += [("pairs", n_rows, confidence | soft | cut), ("pairs", n_rows, cut)]
    cases += [("completions", 21, ACCUMULATED), ("completions", 11, BY_LENGTH | twice)]
    # With 57 rows, groups by length differ between steps of 4 and of 8 rows.
    cases += [("classes", 21, confidence | TOKENS | ACCUMULATED), ("classes", 57, confidence | BY_LENGTH)]
    # Students memorize the labels of these rows, so that the weight rises. Rows that fill up a batch do not count.
    by_agreement = {"aux_start": "agreement", "num_train_epochs": 3, "optim": "adamw_torch", "learning_rate": 0.01}
    cases += [("classes", 131, loss | by_agreement) for loss in (confidence, LOSSES[LOSS_TYPES.index("entropy")])]
    weights = {"weights": True}
    cases += [
        ("classes", 11, confidence | weights | TOKENS),
        ("pairs", 11, {"center_rewards_coefficient": 0.1} | weights),
    ]
    cases += [("pairs", 11, confidence | soft | weights | TOKENS), ("completions", 11, weights)]
    cases += [("classes", 11, supervisors | weights | TOKENS), ("pairs", 21, supervisors | soft | ACCUMULATED)]
    for cut in ({"dataloader_drop_last": True}, {"accelerator_config": {"split_batches": True}}):
        cases += [("classes", 21, confidence | cut), ("pairs", 21, cut), ("completions", 21, cut)]
    return cases


class Logged(TrainerCallback):
    """Records the logged numbers except times."""

    def __init__(self):
        self.entries = []

    def on_log(self, args, state, control, logs=None, **kwargs):
        without = ("second", "time", "flos")
        self.entries.append({name: value for name, value in logs.items() if not any(part in name for part in without)})


def train(kind: str, n_rows: int, options: dict, directory: Path, world: int, stop: int | None = None) -> dict:
    """Trains, and returns steps and final weights. The training is stopped after the step `stop` and resumed."""
    if stop is not None:
        with contextlib.suppress(KeyboardInterrupt):
            make(kind, n_rows, options, directory, world, [Stop(stop)]).train()
    record, logged = Record(), Logged()
    trainer = make(kind, n_rows, options, directory, world, [record, logged])
    trainer.train(resume_from_checkpoint=stop is not None)
    state = trainer.state
    return {
        "steps": torch.tensor(record.trajectory),
        "weights": trainer.accelerator.unwrap_model(trainer.model).state_dict(),
        "logged": logged.entries,
        "counts": (state.global_step, state.max_steps, state.epoch),
    }


@cache
def datasets_of(kind: str, n_rows: int, soft_label: str | None) -> tuple[Dataset, Dataset]:
    """Returns rows for training and evaluation."""
    if kind == "completions":
        return rows_of(n_rows), rows_of(9, 40)  # in the last batch, the second rank has repeated rows only
    if kind == "pairs":
        return make_pairs(n_rows, soft_label), make_pairs(5, soft_label, seed=1)
    return make_rows(n_rows), make_rows(5, seed=1)


def make(kind: str, n_rows: int, options: dict, directory: Path, world: int, callbacks: list, rows=None):
    """Returns the trainer of a configuration, on `rows` instead of its rows if there are `rows`."""
    options = {**OPTIONS, **options}
    rows_per_step, soft_label = options.pop("rows_per_step", 8), options.pop("soft_label", None)
    split = options.get("accelerator_config", {}).get("split_batches") and world > 1
    options["per_device_train_batch_size"] = rows_per_step if split else rows_per_step // world
    options["per_device_eval_batch_size"] = 8 if split else 8 // world
    has_weights = options.pop("weights", False)
    train_rows, eval_rows = datasets_of(kind, n_rows, soft_label)
    train_rows = train_rows if rows is None else rows
    train_rows = with_weights(train_rows) if has_weights else train_rows
    train_rows = with_supervisors(train_rows) if options.get("loss_type") == "learned_supervisors" else train_rows
    common = {"train_dataset": train_rows, "callbacks": callbacks}
    common["eval_dataset"] = eval_rows if "eval_strategy" in options else None
    set_seed(0)
    if kind == "completions":
        tokenizer = make_character_tokenizer()
        args = arguments(directory, CompletionConfig, **options)
        model = make_language_model(tokenizer, small=True)
        return CompletionTrainer(model, args, processing_class=tokenizer, **common)
    common["processing_class"] = make_tokenizer()
    if kind == "pairs":
        args = arguments(directory, RewardPairConfig, max_length=None, **options)
        return RewardPairTrainer(student(0, num_labels=1), args, **common)
    if kind == "chain":
        return BootstrapTrainer(student, 2, arguments(directory, BootstrapConfig, **options), **common)
    return WeakToStrongTrainer(student(0), arguments(directory, WeakToStrongConfig, **options), **common)


def train_all(directory: Path, world: int) -> dict[str, dict]:
    """Trains all configurations, and returns the results by name."""
    results = {}
    for number, (kind, n_rows, options) in enumerate(configurations()):
        results[f"{kind} {n_rows} {options}"] = train(kind, n_rows, options, directory / str(number), world)
    # Stopped in the second epoch, whose rows must have the same order after resuming, also on two ranks.
    twice = {"num_train_epochs": 2, "save_strategy": "steps", "save_steps": 3, "train_sampling_strategy": "random"}
    for kind, options in (("classes", twice), ("completions", twice | BY_LENGTH)):
        for name, stop in (("whole", None), ("resumed", 3)):
            results[f"{kind} {name}"] = train(kind, 11, options, directory / f"{kind}-{name}", world, stop)
    return results
