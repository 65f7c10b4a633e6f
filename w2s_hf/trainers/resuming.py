"""Resumes training with the result of an uninterrupted run, or raises an error before the first step."""

import math
import os
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel, PeftType, get_peft_model_state_dict
from safetensors import SafetensorError, safe_open
from torch import nn
from transformers import (
    EarlyStoppingCallback,
    PreTrainedModel,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)
from transformers.trainer_utils import TrainOutput

from .._compat import ExportableState, has_length, ignored_keys, n_trained_tokens, set_trained_tokens
from ..modeling.adapters import stored_shapes
from .checkpoints import last_complete_checkpoint
from .mixins import TrainerMixin

__all__ = ["ResumableTraining", "record_of"]

_RECORD = "w2s_hf"  # in `stateful_callbacks` of trainer_state.json


class ResumableTraining(TrainerMixin):
    """
    A mixin for a [`~transformers.Trainer`]. A run resumed by `train(resume_from_checkpoint=...)` ends with the same
    result as an uninterrupted run.

    [`~transformers.Trainer`] gives another result in these cases, without an error. With this class:

    - The best checkpoint is found next to the resumed checkpoint, even if their directory was moved. A missing best
      checkpoint is an error (`load_best_model_at_end`).
    - A training run that was interrupted after its last step trains no further step.
    - A checkpoint that has no optimizer (`save_only_model=True`), is truncated, or belongs to another model is an
      error.
    - A resumed run with another number of rows per optimizer step, or with another number or order of rows, is
      an error. A number of steps that the checkpoint already exceeds is an error, too.
    - P-tuning and projected prefixes are refused, since their checkpoints lack a part of the trained weights.
    - The patience of [`~transformers.EarlyStoppingCallback`] is restored.
    """

    _resumed_from: Path | None = None
    _best_checkpoint: str | None = None
    _is_at_its_end = False

    def train(
        self,
        resume_from_checkpoint: str | os.PathLike | bool | None = None,
        trial: dict | None = None,
        ignore_keys_for_eval: list[str] | None = None,
    ) -> TrainOutput:
        """
        Trains like [`~transformers.Trainer.train`].

        Args:
            resume_from_checkpoint (`str`, `os.PathLike` or `bool`, *optional*):
                A checkpoint, or `True` for the newest complete checkpoint in `args.output_dir`.
            trial, ignore_keys_for_eval: As in [`~transformers.Trainer.train`].

        Returns:
            [`~transformers.trainer_utils.TrainOutput`]. If the training was interrupted after its last step,
            `training_loss` is the mean of the logged losses. It is NaN if the last step was not logged.

        Raises:
            ValueError: The resumed run could not end with the same result as an uninterrupted run. The message has
                the reason.
        """
        self._resumed_from = self._best_checkpoint = None
        self._is_at_its_end = False
        if resume_from_checkpoint is True:
            newest = last_complete_checkpoint(Path(self.args.output_dir), remove=False)
            if newest is None:
                raise ValueError(
                    f"resume_from_checkpoint: got True, expected a complete checkpoint in {self.args.output_dir}. "
                    "Train without resume_from_checkpoint, or pass the path of a checkpoint."
                )
            resume_from_checkpoint = newest
        if resume_from_checkpoint:
            self._resumed_from = Path(resume_from_checkpoint)
            self._check_checkpoint(self._resumed_from)
        if self.args.load_best_model_at_end and isinstance(self.model, PeftModel):
            _refuse_lost_encoder(self.model)
        callback, checkpoint = _ResumeCallback(self), None if self._resumed_from is None else str(self._resumed_from)
        self.add_callback(callback)
        try:
            output = super().train(checkpoint, trial, ignore_keys_for_eval)
        finally:
            self.remove_callback(callback)  # the callback refers to the trainer and its model
        if self._is_at_its_end:
            loss = _mean_of_logged_losses(self.state)
            output = output._replace(training_loss=loss, metrics={**output.metrics, "train_loss": loss})
            self._is_at_its_end = False
        return output

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Logs like [`~transformers.Trainer.log`]; `train_loss` is not 0 if no step was left to train."""
        if self._is_at_its_end and "train_loss" in logs:
            logs = {**logs, "train_loss": _mean_of_logged_losses(self.state)}
        super().log(logs, start_time)

    def get_batch_samples(
        self, epoch_iterator: Iterator, num_batches: int, device: torch.device
    ) -> tuple[list[dict], torch.Tensor | int | None]:
        """
        Fetches batches like [`~transformers.Trainer.get_batch_samples`]. Returns no batch if no step is left to train.
        """
        if self._is_at_its_end:
            # Without this line, transformers 5.23 makes one step before it checks the number of steps.
            self.control.should_training_stop = True
            return [], None
        return super().get_batch_samples(epoch_iterator, num_batches, device)

    def _init_training_state(self, max_steps: int, *args, **kwargs) -> tuple[int, int]:
        # transformers 5.17 and 5.23 compare ratios (`save_steps=0.25`) with the numbers of steps in the checkpoint,
        # and warn that they differ. During the comparison, the ratios are converted to numbers.
        values = {name: getattr(self.args, name) for name in ("logging_steps", "eval_steps", "save_steps")}
        ratios = {name: value for name, value in values.items() if value is not None and 0 < value < 1}
        try:
            for name, ratio in ratios.items():
                setattr(self.args, name, math.ceil(max_steps * ratio))
            return super()._init_training_state(max_steps, *args, **kwargs)
        finally:
            for name, ratio in ratios.items():
                setattr(self.args, name, ratio)

    # ---- Checks ----

    def _check_checkpoint(self, checkpoint: Path) -> None:
        """Checks a checkpoint before it is loaded."""
        where = f"resume_from_checkpoint: got {checkpoint}"
        try:
            state = TrainerState.load_from_json(str(checkpoint / "trainer_state.json"))
        except (OSError, ValueError, TypeError) as error:
            raise ValueError(
                f"{where}, where trainer_state.json is missing or truncated, expected a whole checkpoint of a "
                "trainer. Pass another checkpoint, or train without resume_from_checkpoint."
            ) from error
        lost = self._missing_state(checkpoint)
        if lost:
            raise ValueError(
                f"{where} without {', '.join(lost)}, expected a whole checkpoint. A run saved with "
                "save_only_model=True, or on another number of processes, cannot be resumed exactly. Pass another "
                "checkpoint, or begin a new run from its model."
            )
        if self._draws_random_numbers and self.args.dataloader_persistent_workers and self.args.dataloader_num_workers:
            # New workers draw a random number that the uninterrupted run drew once, before the checkpoint.
            raise ValueError(
                f"{where}, and dataloader_persistent_workers=True with dropout or NEFTune, expected False, since "
                "the random numbers would not be the same as in an uninterrupted run. Set "
                "dataloader_persistent_workers=False."
            )
        for file in sorted(checkpoint.iterdir()):
            if not _is_whole(file):
                raise ValueError(
                    f"{where}, where {file.name} is truncated, expected a whole checkpoint. Pass another checkpoint."
                )
        self._best_checkpoint = _best_checkpoint_beside(checkpoint, state)
        if self.args.load_best_model_at_end and state.best_model_checkpoint and self._best_checkpoint is None:
            raise ValueError(
                f"{where}, whose best checkpoint {Path(state.best_model_checkpoint).name} (step "
                f"{state.best_global_step}) is neither next to the resumed checkpoint nor at "
                f"{state.best_model_checkpoint}. load_best_model_at_end=True needs the best checkpoint. Restore it, "
                "or set load_best_model_at_end=False."
            )

    @property
    def _draws_random_numbers(self) -> bool:
        """Returns whether the training draws random numbers besides the numbers for the order of its rows."""
        return not getattr(self.args, "disable_dropout", False) or self.args.neftune_noise_alpha is not None

    def _missing_state(self, checkpoint: Path) -> list[str]:
        """Returns the missing files of a checkpoint, besides the model, that an exact resume needs."""
        if self.is_deepspeed_enabled:
            return [] if any(checkpoint.glob("global_step*")) else ["the state of the optimizer (global_step*)"]
        needed = ["scheduler.pt"] if any(checkpoint.glob("optimizer*")) else ["optimizer.pt", "scheduler.pt"]
        if getattr(self.accelerator, "scaler", None) is not None:
            needed.append("scaler.pt")
        if self._draws_random_numbers:
            rank = f"_{self.args.process_index}" if self.args.world_size > 1 else ""
            needed.append(f"rng_state{rank}.pth")
        return [name for name in needed if not (checkpoint / name).is_file()]

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        # This method raises an error if adapters do not match the model. PEFT only warns (transformers 5.17 and 5.23).
        network = self.model if model is None else model
        if isinstance(network, PeftModel) and not (self.is_fsdp_enabled or self.is_deepspeed_enabled):
            _refuse_lost_encoder(network)
            _refuse_other_adapters(network, Path(resume_from_checkpoint))
        try:
            super()._load_from_checkpoint(resume_from_checkpoint, model)
        except _OtherWeightsError:
            # transformers 5 saves the weights of some models, such as GPT-NeoX and mixtures of experts, under other
            # names than in memory. Its trainer does not translate them back, but `from_pretrained` does.
            if not isinstance(network, PreTrainedModel):
                raise
            options: dict[str, Any] = {"config": network.config, "dtype": network.dtype, "output_loading_info": True}
            loaded: Any = type(network).from_pretrained(resume_from_checkpoint, **options)
            saved, info = loaded
            if info["missing_keys"] or info["unexpected_keys"] or info["mismatched_keys"]:
                raise
            network.load_state_dict(saved.state_dict())

    def _issue_warnings_after_load(self, load_result) -> None:
        # This method raises an error if weights are missing. The method of transformers 5.17 and 5.23 only warns, and
        # the training continues with new weights.
        weights = {**dict(self.model.named_parameters(remove_duplicate=False)), **dict(self.model.named_buffers())}
        not_loaded = set(load_result.missing_keys)
        loaded = {weight.data_ptr() for name, weight in weights.items() if name not in not_loaded}
        may_be_missing, may_be_unexpected = ignored_keys(self.model)
        missing = [
            name
            for name in sorted(not_loaded)
            if not (name in weights and weights[name].data_ptr() in loaded)  # tied to a weight that was loaded
            and not any(re.search(pattern, name) for pattern in may_be_missing)
        ]
        unexpected = [
            name
            for name in load_result.unexpected_keys
            if not any(re.search(pattern, name) for pattern in may_be_unexpected)
        ]
        if missing or unexpected:
            raise _OtherWeightsError(
                f"Got a checkpoint of another model. It lacks {len(missing)} weights of the model "
                f"({', '.join(missing[:3])}), and has {len(unexpected)} weights that the model does not have "
                f"({', '.join(unexpected[:3])}). Pass the model that was trained."
            )
        super()._issue_warnings_after_load(load_result)

    def _load_best_model(self) -> None:
        # This method raises an error if the best checkpoint is missing. In transformers 5.17 and 5.23 it only warns,
        # and keeps the last weights.
        best = self.state.best_model_checkpoint
        if best is None or not os.path.isdir(best):
            raise ValueError(
                f"load_best_model_at_end: the best checkpoint {best} is missing. The model has the weights of the "
                f"last step, {self.state.global_step}. Train again and keep the checkpoints. In "
                "Python, save_model saves this model."
            )
        if self.is_fsdp_enabled or self.is_deepspeed_enabled:
            super()._load_best_model()
        else:
            self._load_from_checkpoint(best)

    def _record_of_rows(self) -> dict[str, int | str | bool | None]:
        """Returns the settings that decide which rows each step of an epoch trains on."""
        args, rows = self.args, self.train_dataset
        return {
            "rows": len(rows) if has_length(rows) else None,
            "rows per optimizer step": self.get_total_train_batch_size(args),
            "data_seed": args.seed if args.data_seed is None else args.data_seed,
            "train_sampling_strategy": str(getattr(args, "train_sampling_strategy", None)),
            "dataloader_drop_last": args.dataloader_drop_last,
        }


class _OtherWeightsError(ValueError):
    """The error for a checkpoint whose weight names differ from the names in the model."""


class _ResumeCallback(TrainerCallback):
    """Checks and completes the state of a training run once [`~transformers.Trainer`] has loaded it."""

    def __init__(self, trainer: ResumableTraining):
        self.trainer = trainer

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs) -> None:
        trainer, now = self.trainer, self.trainer._record_of_rows()
        then = _saved_callbacks(state).get(_RECORD, {})
        if trainer._resumed_from is not None:
            if state.global_step > state.max_steps:
                raise ValueError(
                    f"max_steps: got {state.max_steps}, expected at least {state.global_step}, the finished "
                    f"steps of {trainer._resumed_from}. Raise max_steps."
                )
            if not args.ignore_data_skip and not args.auto_find_batch_size:
                for name in now:
                    if name in then and then[name] != now[name]:
                        raise ValueError(
                            f"{name}: got {now[name]!r}, expected {then[name]!r}, with which {trainer._resumed_from} "
                            "was saved. The resumed steps would train on other rows. Set it to this value, or begin "
                            "a new training run."
                        )
            state.best_model_checkpoint = trainer._best_checkpoint
            trainer._is_at_its_end = state.global_step >= state.max_steps or self._has_stopped_early(state)
            if n_trained_tokens(trainer) is not None:
                set_trained_tokens(trainer, then.get("n_tokens", 0))
        _saved_callbacks(state)[_RECORD] = {**then, **now}
        for callback in [*trainer.callback_handler.callbacks, control]:
            if isinstance(callback, ExportableState):
                # transformers 5.23 saves no checkpoint if callbacks were added.
                _saved_callbacks(state).setdefault(type(callback).__name__, callback.state())

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs) -> None:
        n_tokens = n_trained_tokens(self.trainer)
        if n_tokens is not None:  # TRL's count of tokens would start from 0 after a resume
            record_of(state)["n_tokens"] = n_tokens

    def _has_stopped_early(self, state: TrainerState) -> bool:
        """Restores the counter of early stopping, and returns whether its patience is used up."""
        saved = _saved_callbacks(state).get(EarlyStoppingCallback.__name__, {})
        saved = saved if isinstance(saved, list) else [saved]
        callbacks = [cb for cb in self.trainer.callback_handler.callbacks if isinstance(cb, EarlyStoppingCallback)]
        for callback, values in zip(callbacks, saved, strict=False):
            callback.early_stopping_patience_counter = values.get("attributes", {}).get(
                "early_stopping_patience_counter", 0
            )
        return any(cb.early_stopping_patience_counter >= cb.early_stopping_patience for cb in callbacks)


def record_of(state: TrainerState) -> dict[str, Any]:
    """Returns the data that the trainers of this package save with every checkpoint, as JSON values by name."""
    return _saved_callbacks(state).setdefault(_RECORD, {})


def _saved_callbacks(state: TrainerState) -> dict[str, Any]:
    return state.stateful_callbacks  # type: ignore[return-value]  # a list only as an argument


def _best_checkpoint_beside(checkpoint: Path, state: TrainerState) -> str | None:
    """Returns the best checkpoint of a state: next to `checkpoint`, or at its recorded path."""
    if state.best_model_checkpoint is None:
        return None
    recorded = Path(state.best_model_checkpoint)
    return next((str(path) for path in (checkpoint.parent / recorded.name, recorded) if path.is_dir()), None)


def _is_whole(file: Path) -> bool:
    """Returns whether a file of a checkpoint seems complete, judged by its format."""
    if file.name == "optimizer.pt" or file.name == "scheduler.pt" or file.match("rng_state*.pth"):
        return zipfile.is_zipfile(file)
    if file.suffix == ".safetensors":
        try:
            with safe_open(file, "pt"):
                return True
        except SafetensorError:
            return False
    return True


def _refuse_lost_encoder(model: PeftModel) -> None:
    """
    Raises `ValueError` for virtual tokens that are the output of a trained encoder. PEFT saves only the output, and
    loads it as the input of the encoder (0.18 to 0.21). The loaded model therefore differs from the saved model.
    """
    config = model.active_peft_config
    if config.peft_type == PeftType.P_TUNING or getattr(config, "prefix_projection", False):
        kind = "p-tuning" if config.peft_type == PeftType.P_TUNING else "prefix tuning with prefix_projection=True"
        raise ValueError(
            f"Got a model with {kind}, whose checkpoints lack the encoder of its virtual tokens. They can neither be "
            "resumed nor loaded as the best model. Set load_best_model_at_end=False and train without "
            "resume_from_checkpoint, or use LoRA, prompt tuning or prefix tuning without projection."
        )


def _refuse_other_adapters(model: PeftModel, checkpoint: Path) -> None:
    """Raises `ValueError` if the adapters in a checkpoint differ from the adapters of the model in name or shape."""
    file = checkpoint / "adapter_model.safetensors"
    if not file.is_file():
        return
    got = stored_shapes(file)
    state = get_peft_model_state_dict(model, adapter_name=model.active_adapters[0], save_embedding_layers=False)
    expected = {name: tuple(weight.shape) for name, weight in state.items()}
    # PEFT also saves embeddings that were resized.
    ends = [model.get_input_embeddings(), model.get_output_embeddings()]
    embeddings = tuple(f"{name}." for name, module in model.named_modules() if any(module is end for end in ends))
    different = [name for name in expected if got.get(name) != expected[name]]
    different += [name for name in got if name not in expected and not name.startswith(embeddings)]
    if different:
        name = different[0]
        raise ValueError(
            f"{checkpoint}: got adapters of another model, in which {len(different)} weights differ ({name}: shape "
            f"{got.get(name)}, expected {expected.get(name)}). Pass the model and the adapters that were trained."
        )


def _mean_of_logged_losses(state: TrainerState) -> float:
    total = last = 0.0
    for entry in state.log_history:
        if "loss" in entry:
            total += entry["loss"] * (entry["step"] - last)
            last = entry["step"]
    return total / last if last == state.global_step > 0 else math.nan
