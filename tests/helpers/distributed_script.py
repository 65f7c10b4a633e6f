"""Trains and predicts on one or two ranks for test_distributed.py. Rank 0 writes the results."""

import json
import logging
import os
import sys
from pathlib import Path

import accelerate
import torch
from accelerate.utils import gather_object
from packaging.version import Version

from helpers.chains import student
from helpers.models import make_character_tokenizer, make_language_model, make_model, make_rows, make_tokenizer
from helpers.training import arguments, make_pairs, train, train_pairs
from helpers.uneven_rows import make, train_all
from w2s_hf import WeakToStrongTrainer
from w2s_hf.generation import complete


class CutsFreely(WeakToStrongTrainer):
    _ranks_cut_alike = False


class OwnLoss(WeakToStrongTrainer):
    def __init__(self, **kwargs):
        super().__init__(**kwargs, loss=squared_error)


def squared_error(logits, soft_labels, step):
    return (logits.softmax(dim=-1) - soft_labels).square().sum(dim=-1)


class CutsAlike(WeakToStrongTrainer):
    _ranks_cut_alike = True


def cut_alike(directory: Path, cut: dict, trajectories: dict) -> list[list[int]]:
    """
    Returns the number of forward passes of both ranks, first with independent micro-batches, and then with equal
    numbers of micro-batches as for FSDP.
    """
    n_passes = []
    for name, trainer_class in (("tokens", CutsFreely), ("tokens, cut alike", CutsAlike)):
        model, passes = make_model("llama"), []
        model.register_forward_hook(lambda *args, passes=passes: passes.append(1))
        _, trajectory = train(model, make_tokenizer(), directory / name, trainer_class=trainer_class, **cut)
        trajectories[f"xent {name}"] = trajectory.tolist()
        n_passes.append(gather_object([len(passes)]))
    return n_passes


def said_at_the_start(directory: Path) -> list[str]:
    """Returns the warnings and errors about rows that cannot be split so that each row is trained on once."""
    messages, logger = [], logging.getLogger("w2s_hf.trainers.epochs")
    handler = logging.Handler()
    handler.emit = lambda record: messages.append(record.getMessage())
    logger.addHandler(handler)
    rows = make_rows(10, lengths=(8, 9))
    once = {"max_steps": 1, "per_device_train_batch_size": 1, "gradient_accumulation_steps": 4}
    by_itself = {"accelerator_config": {"dispatch_batches": False}}
    train(student(0), make_tokenizer(), directory, rows.to_iterable_dataset(), **once, **by_itself)
    if Version(accelerate.__version__) >= Version("1.11"):  # older versions refuse this with several processes
        train(student(0), make_tokenizer(), directory, rows, train_sampling_strategy="batch_rebalance", **once)
    try:
        by_itself = {"per_device_train_batch_size": 4, "accelerator_config": {"even_batches": False}}
        train(student(0), make_tokenizer(), directory, rows, **by_itself)
    except ValueError as error:
        messages.append(str(error))
    return messages


def refused_weights(directory: Path) -> list[list[str]]:
    """Returns the errors of both ranks if only the batches of rank 1 have weights, for rows and for completions."""
    errors = []
    for kind in ("classes", "completions"):
        trainer = make(kind, 10, {}, directory / kind, 2, [])
        collate = trainer.data_collator

        def other(rows, collate=collate, n_weights=trainer.args.process_index):
            return collate(rows) | ({"weight": torch.ones(len(rows))} if n_weights else {})

        trainer.data_collator = other
        try:
            trainer.train()
        except ValueError as error:
            errors.append(str(error))
    return gather_object([errors])


def main(output: Path) -> None:
    import torch.distributed as dist
    from accelerate import PartialState

    state = PartialState(cpu=True)
    world = state.num_processes
    result = {"world": world, "trajectories": {}}
    cuts = {
        "whole": {"per_device_train_batch_size": 8 // world},
        # Ranks form different micro-batches, because the lengths of their rows differ.
        "tokens": {"per_device_train_batch_size": 8 // world, "max_tokens_per_micro_batch": 40},
    }
    uneven = train_all(output.parent / "uneven", world)
    _, trajectory = train(make_model("llama"), make_tokenizer(), output.parent / "whole", **cuts["whole"])
    result["trajectories"]["xent whole"] = trajectory.tolist()
    own = {"trainer_class": OwnLoss, **cuts["whole"]}
    _, trajectory = train(make_model("llama"), make_tokenizer(), output.parent / "own loss", **own)
    result["trajectories"]["own loss"] = trajectory.tolist()
    if world > 1:
        result["said"] = said_at_the_start(output.parent / "said")
        result["weights"] = refused_weights(output.parent / "weights")
        result["alike"] = cut_alike(output.parent, cuts["tokens"], result["trajectories"])
    # The last batch is incomplete: 21 rows in batches of 4 per rank.
    trainer = WeakToStrongTrainer(
        model=make_model("llama"),
        args=arguments(output.parent, per_device_eval_batch_size=4),
        processing_class=make_tokenizer(),
    )
    result["predictions"] = trainer.predict_proba(make_rows(21, labels="none")).tolist()
    reward_trainer, _ = train_pairs(output.parent / "pairs", make_pairs(24, "random"), **cuts["whole"])
    result["pairs"] = reward_trainer.predict_proba(make_pairs(21, "random", seed=4)).tolist()
    result["seen"] = {}
    for name, one, rows in (
        ("rows", trainer, make_rows(21, "scalar")),
        ("pairs", reward_trainer, make_pairs(21, "random")),
    ):
        labels = []
        one.compute_metrics = lambda prediction, labels=labels: labels.extend(prediction.label_ids.tolist()) or {}
        one.predict(rows)
        result["seen"][name] = [label[1] if name == "rows" else label for label in labels]
    tokenizer = make_character_tokenizer()
    model = make_language_model(tokenizer).eval()
    prompts = [f"{'abc de ' * (number % 5)}f{number}:" for number in range(21)]
    completions = complete(model, tokenizer, prompts, max_new_tokens=6, batch_size=4, keep=output.parent / "kept")
    again = complete(model, tokenizer, prompts, max_new_tokens=6, batch_size=4, keep=output.parent / "kept")
    result["completions"] = [[completion.text, completion.is_cut] for completion in completions]
    result["kept"] = again == completions and len(list((output.parent / "kept").glob("rank*.jsonl"))) == world
    if state.is_main_process:
        output.write_text(json.dumps(result))
        torch.save(uneven, output.with_suffix(".pt"))
    if dist.is_initialized():
        dist.barrier()
        # Exit without teardown. The models refer to their process group, and torch may wait forever for a thread of
        # gloo if they are deleted after it.
        os._exit(0)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
