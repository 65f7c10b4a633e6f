"""Trains a student as a language model on the responses, before it is trained to judge them."""

import dataclasses
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from accelerate import PartialState
from datasets import Dataset
from peft import PeftModel
from transformers import PreTrainedModel, TrainingArguments, set_seed
from trl import SFTConfig

from ..modeling import disable_dropout, load_config, load_tokenizer
from ..modeling.adapters import fresh_adapter, keep_trainable
from ..modeling.heads import is_decoder
from ..modeling.spec import ModelSpec, load_base, peft_config_of
from ..trainers.checkpoints import last_complete_checkpoint
from ..trainers.sft import ResumableSFTTrainer
from .finetuner import Finetuner, save_training
from .tracking import run_path, tracked

__all__ = ["check_decoder", "generative_finetune", "generative_kind"]


def generative_finetune(
    finetuner: Finetuner,
    model: ModelSpec,
    pairs: Dataset,
    *,
    seed: int,
    learning_rate: float | None = None,
    num_train_epochs: float = 1.0,
    task: str | None = None,
) -> ModelSpec:
    """
    Trains a language model on both responses of each pair, by TRL's SFT. The preferences are ignored.

    The loss is the language modelling loss over prompt and response. Students *and* ceiling start from the result. If
    only students started from it, PGR would be too high (paper, 5.2.2). The adapters become the adapters of the
    reward model, which has a new head. A 4-bit base model is therefore neither merged nor quantized again.

    Args:
        finetuner ([`Finetuner`]): Its training arguments are used, except for the arguments below.
        model ([`ModelSpec`]): A decoder.
        pairs ([`~datasets.Dataset`]): The training rows of the student, with [`w2s_hf.tasks.PAIR_COLUMNS`].
        seed (`int`): Seeds adapters and row order.
        learning_rate (`float`, *optional*): Defaults to the learning rate of the training arguments.
        num_train_epochs (`float`, *optional*, defaults to `1.0`): Epochs over both responses of all pairs.
        task (`str`, *optional*): Name of the task, for trackers.

    Returns:
        [`ModelSpec`]: The model that students and ceiling start from.

    Raises:
        ValueError: The model is not a decoder.
    """
    check_decoder(model, "--generative_finetuning")
    changes: dict[str, Any] = {"num_train_epochs": num_train_epochs, "seed": seed, "data_seed": seed}
    changes |= {"eval_strategy": "no", "eval_on_start": False, "load_best_model_at_end": False}
    changes |= {"max_steps": -1, "push_to_hub": False}
    if learning_rate is not None:
        changes["learning_rate"] = learning_rate
    settings = {
        "model": model.identity,
        "args": finetuner.settings_of(changes),
        "pairs": finetuner.fingerprint(pairs),
        "n_processes": PartialState().num_processes,
    }

    title = f"generative finetuning, {model.name} on both responses of {len(pairs)} pairs"
    run = run_path(finetuner.args.run_name, task, seed, "generative finetuning", model.name, None)
    train = partial(_train, finetuner, model, pairs, changes, run)
    directory = finetuner.cache.run("generative", settings, train, title=title, kind=generative_kind(model.name))
    version = f"{model.version} {directory.name}"
    if model.config.use_peft:
        return replace(model, version=version, adapters=str(directory / "model"))
    return replace(model, path=str(directory / "model"), version=version, revision=None)


def generative_kind(name: str) -> str:
    """Returns the kind of step for [`Progress.plan`]: the generative finetuning of the model `name`."""
    return f"generative finetuning of {name}"


def _train(
    finetuner: Finetuner, model: ModelSpec, pairs: Dataset, changes: dict[str, Any], run: str, directory: Path
) -> None:
    """Trains or resumes in `directory`, and writes `model/` to it."""
    tokenizer = load_tokenizer(model.path, revision=model.revision)
    tokens = finetuner.tokenize(model, tokenizer, pairs)
    texts = tokens["chosen_ids"][:] + tokens["rejected_ids"][:]
    finetuner.release()
    student = _language_model(model, changes["seed"])
    if finetuner.args.disable_dropout:
        disable_dropout(student)
    with keep_trainable(student):
        trainer = ResumableSFTTrainer(
            model=student,
            args=_sft_config(finetuner, directory, changes, longest=max(map(len, texts))),
            train_dataset=Dataset.from_dict({"input_ids": texts}),
            processing_class=tokenizer,
        )
    with tracked(trainer, directory, finetuner.logs, run):
        trainer.train(resume_from_checkpoint=last_complete_checkpoint(directory / "checkpoints"))
    save_training(trainer, tokenizer, directory)
    trainer.accelerator.free_memory()


def check_decoder(model: ModelSpec, option: str) -> None:
    """Raises `ValueError` if a model cannot generate text."""
    model_type = load_config(model.path, model.revision).model_type
    if not is_decoder(model_type):
        raise ValueError(
            f"{option}: got {model.name} of type {model_type!r}, expected a decoder, which can generate text, such as "
            "Qwen2 or GPT-2. Name another model."
        )


def _language_model(model: ModelSpec, seed: int) -> PreTrainedModel | PeftModel:
    set_seed(seed)
    base = load_base(model, "CAUSAL_LM")
    if not model.config.use_peft:
        return base
    return fresh_adapter(base, peft_config_of(model, "CAUSAL_LM"), seed=seed)


def _sft_config(finetuner: Finetuner, directory: Path, changes: dict, *, longest: int) -> SFTConfig:
    """Returns the experiment's training arguments for SFT, which neither truncates nor packs tokenized texts."""
    values = {f.name: getattr(finetuner.args, f.name) for f in dataclasses.fields(TrainingArguments) if f.init}
    values |= {"output_dir": str(directory / "checkpoints"), **changes}
    if finetuner.args.max_tokens_per_micro_batch is not None:
        # SFT has no token budget: a micro-batch has as many texts as fit at any length. The rows of an optimizer step
        # stay the same.
        batch_size = values["per_device_train_batch_size"]
        n_fit = max(1, finetuner.args.max_tokens_per_micro_batch // longest)
        micro_batch_size = max(n for n in range(1, min(n_fit, batch_size) + 1) if batch_size % n == 0)
        values["per_device_train_batch_size"] = micro_batch_size
        values["gradient_accumulation_steps"] *= batch_size // micro_batch_size
    return SFTConfig(**values, max_length=None, packing=False)
