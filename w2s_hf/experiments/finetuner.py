"""Finetunes one model on one set of labels and predicts rows. Supervisor, ceiling and students use this stage."""

import dataclasses
import gc
import hashlib
import json
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np
import torch
from accelerate import PartialState
from datasets import Dataset, concatenate_datasets
from peft import PeftModel
from transformers import PreTrainedModel, PreTrainedTokenizerBase, Trainer, set_seed

from ..labels import LabelsById
from ..losses import ALL_LOSS_ARGUMENTS, LOSS_ARGUMENTS, RowLoss
from ..methods import NAIVE, Method
from ..modeling import fresh_adapter, load_adapter_weights, load_tokenizer
from ..modeling.heads import base_of, initialise_head
from ..modeling.spec import ModelSpec, load_base, peft_config_of
from ..tasks import Half, PromptFormat, Task
from ..tasks.prompt import head_tokens
from ..tasks.task import AnyTask
from ..trainers.checkpoints import last_complete_checkpoint
from ..trainers.snapshots import SnapshotCallback
from ..training_settings import WITHOUT_EFFECT
from .cache import StageCache, library_versions
from .config import Own
from .settings.base import Setting, metric_name
from .tracking import run_path, tracked, untracked

__all__ = ["Finetuned", "Finetuner", "RowsSource", "prompt_of_head", "save_training"]

Network = TypeVar("Network", bound=torch.nn.Module)


class RowsSource(Protocol):
    """The task and the provenance of rows. [`TaskSplits`] has both, together with the rows."""

    @property
    def task(self) -> Any:
        """The task of the rows."""

    @property
    def provenance(self) -> dict:
        """The dataset and the split of the rows."""


@dataclass(frozen=True)
class Finetuned:
    """
    A finetuned model.

    Args:
        spec ([`ModelSpec`]): The model before it was finetuned.
        directory (`Path`): Contains `model/` (adapters, head and tokenizer, or the whole model), `predictions/`, and
            `snapshots/step-N/predictions/` of each snapshot.
        predictions ([`LabelsById`]): The predictions of the model.
        weak_labels ([`LabelsById`], *optional*): The weak labels of the training rows (of the first part, if there
            are several parts); `None` for ground truth.
    """

    spec: ModelSpec
    directory: Path
    predictions: LabelsById
    weak_labels: LabelsById | None = None

    @property
    def labels(self) -> LabelsById:
        """The weak labels that the model was trained on. Raises `ValueError` if it was trained on ground truth."""
        if self.weak_labels is None:
            raise ValueError(f"Got {self.spec.name} trained on ground truth, expected a model trained on weak labels.")
        return self.weak_labels


def name_classes(model: PreTrainedModel | PeftModel, class_names: Sequence[str]) -> None:
    """Names the outputs of a classifier in its configuration, for `config.json` and pipelines."""
    config = base_of(model).config
    if config.num_labels == len(class_names):
        config.id2label = dict(enumerate(class_names))
        config.label2id = {name: position for position, name in enumerate(class_names)}


def save_training(trainer: Trainer, tokenizer: PreTrainedTokenizerBase, directory: Path) -> None:
    """
    Saves `model/`, then `training.json`, which marks the model as complete, and removes the checkpoints. Every rank
    calls this function.
    """
    trainer.accelerator.wait_for_everyone()  # a slower rank may still be loading the best checkpoint
    trainer.save_model(str(directory / "model"))
    if trainer.is_world_process_zero():
        tokenizer.save_pretrained(directory / "model")
        # The arguments contain paths of this machine, and the student can be used without them.
        (directory / "model" / "training_args.bin").unlink(missing_ok=True)
        aside = directory / "training.json.partial"
        aside.write_text(json.dumps(trainer.state.log_history, indent=1) + "\n")
        os.replace(aside, directory / "training.json")
        shutil.rmtree(directory / "checkpoints", ignore_errors=True)


def prompt_of_head(spec: ModelSpec, task: AnyTask) -> PromptFormat | None:
    """Returns the prompt whose answers initialize the head of a model; `None` without `--head_init answers`."""
    return task.prompt_format if spec.config.head_init == "answers" and isinstance(task, Task) else None


def _prepare_to_predict(trainer: Trainer) -> None:
    """
    Prepares a trainer to predict with a model that was finetuned earlier. FSDP and DeepSpeed shard a model only
    together with an optimizer, so the trainer trains for 0 steps.
    """
    untracked(trainer)
    if trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled:
        trainer.args.num_train_epochs, trainer.args.max_steps = 0, -1
        trainer.train()


def _provenance(
    spec: ModelSpec, splits: RowsSource, labels: dict[str, LabelsById] | None, seed: int, key: str
) -> dict:
    """Returns the provenance of predictions: model, training labels, seed and stage."""
    of_labels = {}
    if labels is not None:
        of_labels = {
            "taught_by": next(iter(labels.values())).provenance["stage"],
            "weak_labels": "+".join(of_part.fingerprint for of_part in labels.values()),
            "parts": list(labels),
        }
    of_model = {"model": spec.name, "model_version": spec.version, "seed": seed, "stage": key}
    return {**splits.provenance, **of_labels, **of_model, "versions": library_versions()}


@dataclass
class Finetuner:
    """
    Finetunes the models of an experiment, each as a cached stage. Stages share a loaded base model and tokenized rows.

    Args:
        cache ([`StageCache`]): The finished stages.
        setting ([`Setting`]): Defines how models are trained and predict.
        args ([`WeakToStrongConfig`], [`RewardPairConfig`] or [`CompletionConfig`]):
            Training arguments of the setting. Each finetuning can override some of them.
    """

    cache: StageCache
    setting: Setting
    args: Own
    _base: tuple[tuple, PreTrainedModel | PeftModel] | None = None
    _tokenized: dict[tuple, Dataset] = field(default_factory=dict)

    def finetune(
        self,
        name: str,
        spec: ModelSpec,
        rows: Half,
        predict: list[Dataset],
        *,
        splits: RowsSource,
        seed: int,
        method: Method = NAIVE,
        labels: dict[str, LabelsById] | None = None,
        n_snapshots: int = 0,
        title: str | None = None,
        kind: str | None = None,
        **changes,
    ) -> Finetuned:
        """
        Finetunes a model on the labels of rows and predicts other rows.

        Args:
            name (`str`): Name of the stage in the cache.
            spec ([`ModelSpec`]): The model.
            rows ([`Half`]): Training and validation rows with the columns of the setting and its label column.
            predict (`list` of [`~datasets.Dataset`]): Rows to predict, with the columns of the setting.
            splits ([`TaskSplits`] or [`RowsSource`]): The source of the rows, which is recorded with the predictions.
            seed (`int`): Seeds head, adapters and row order.
            method ([`Method`], *optional*): The loss and the training arguments. Defaults to naive finetuning. Its
                transform is not applied.
            labels (`dict[str, LabelsById]`, *optional*):
                The weak labels of `rows`, by the part of the splits; `None` for ground truth.
            n_snapshots (`int`, *optional*, defaults to 0): Number of evenly spaced training steps after which the
                model predicts, including the last step.
            title (`str`, *optional*): The role of the model, in the line that announces its training. Defaults to the
                name of the stage.
            kind (`str`, *optional*): The kind of step. Steps of a kind take similar time. Defaults to the model name.
            changes: Training arguments that differ from the experiment's.
        """
        if "ground_truth" in rows.train.column_names or "ground_truth" in rows.validation.column_names:
            raise ValueError(
                f"{name}: got training rows with the column `ground_truth`, which a student must not see. "
                "Remove the column."
            )
        changes = self._changes(changes, method, seed, is_weak=labels is not None)
        settings = {
            "setting": self.setting.name,
            "model": spec.identity,
            "args": self.settings_of(changes),
            "train": self.fingerprint(rows.train),
            "validation": self.fingerprint(rows.validation),
            "predict": [self.fingerprint(part) for part in predict],
            "seed": seed,
            "n_processes": PartialState().num_processes,
        }
        supervisor = None if labels is None else next(iter(labels.values())).provenance.get("model", "a supervisor")
        role = title or name.replace("-", " ")
        form = prompt_of_head(spec, splits.task)
        if form is not None:
            settings["answers"] = [form.suffix, *form.answers]
        further: dict[str, Any] = {"class_names": self.setting.class_names(splits.task), "n_snapshots": n_snapshots}
        settings |= {key: value for key, value in further.items() if value}
        if method.loss_code is not None:
            settings["loss"] = method.loss_code
        train = partial(
            self._train,
            spec=spec,
            rows=rows,
            predict=predict,
            changes=changes,
            provenance=_provenance(spec, splits, labels, seed, self.cache.key(name, settings)),
            is_weak=labels is not None,
            loss=method.loss_function,
            form=form,
            run=run_path(self.args.run_name, splits.provenance.get("task"), seed, role, spec.name, supervisor),
            **further,
        )
        source = "true labels" if supervisor is None else f"labels of {supervisor}"
        title = f"{role}, {spec.name} on {len(rows.train)} {self.setting.rows} with {source}"
        directory = self.cache.run(name, settings, train, title=title, kind=kind or spec.name)
        predictions = self.setting.labels.load(directory / "predictions")
        return Finetuned(spec, directory, predictions, None if labels is None else next(iter(labels.values())))

    @property
    def logs(self) -> Path:
        """The directory of the TensorBoard logs, `runs` in the output directory."""
        return Path(self.args.output_dir) / "runs"

    def _changes(self, changes: dict[str, Any], method: Method, seed: int, is_weak: bool) -> dict[str, Any]:
        """Returns the training arguments of one finetuning that differ from the experiment's."""
        changes = {**self.setting.arguments_of(method), **changes}
        metric = changes.get("metric_for_best_model", self.args.metric_for_best_model)
        changes["metric_for_best_model"] = metric_name(metric, is_weak)
        return changes | {"seed": seed, "data_seed": seed, "push_to_hub": False}

    def _train(
        self,
        directory: Path,
        *,
        spec: ModelSpec,
        rows: Half,
        predict: list[Dataset],
        changes: dict[str, Any],
        provenance: dict,
        class_names: list[str] | None,
        is_weak: bool,
        loss: RowLoss | None,
        form: PromptFormat | None,
        run: str,
        n_snapshots: int,
    ) -> None:
        """Trains or resumes in `directory`, and writes `model/` and `predictions/` to it."""
        # The arguments are created only for a stage that is built, since their creation resets accelerate's state.
        args = dataclasses.replace(self.args, output_dir=str(directory / "checkpoints"), **changes)
        tokenizer = load_tokenizer(spec.path, revision=spec.revision)
        is_trained = (directory / "training.json").is_file()  # the run was stopped during the prediction
        if is_trained:
            model = self.finished(spec, directory / "model")
        else:
            model = self.untrained(spec, tokenizer, args.seed, form)
        if class_names is not None:
            name_classes(model, class_names)
        tokenize = partial(self.tokenize, spec, tokenizer)
        trainer = self.setting.make_trainer(
            model, args, tokenizer, rows.train, rows.validation, tokenize, is_weak, loss
        )

        def take(step: int) -> None:
            snapshot = directory / "snapshots" / f"step-{step}"
            self._predict(trainer, spec, tokenizer, predict, {**provenance, "step": step}, snapshot)

        if n_snapshots:
            trainer.add_callback(SnapshotCallback(take, n_snapshots))
        if is_trained:
            _prepare_to_predict(trainer)
        else:
            with tracked(trainer, directory, self.logs, run):
                trainer.train(resume_from_checkpoint=last_complete_checkpoint(directory / "checkpoints"))
            save_training(trainer, tokenizer, directory)
        self._predict(trainer, spec, tokenizer, predict, provenance, directory)
        trainer.accelerator.free_memory()
        if trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled:
            self.release()  # a sharded or wrapped base model cannot be used for another student

    def predict(
        self, name: str, finetuned: Finetuned, rows: Half, predict: list[Dataset], *, title: str | None = None
    ) -> LabelsById:
        """
        Predicts more rows with a finetuned model, as a separate cached stage.

        Args:
            name (`str`): Name of the stage in the cache.
            finetuned ([`Finetuned`]): The model.
            rows ([`Half`]): Labelled rows, without which the trainer cannot be created. No model is trained on them.
            predict (`list` of [`~datasets.Dataset`]): Rows to predict, with the columns of the setting.
            title (`str`, *optional*): The line that announces the stage.
        """
        spec, trained = finetuned.spec, finetuned.directory
        settings = {
            "trained": trained.name,
            "rows": [self.fingerprint(part) for part in predict],
            "n_processes": PartialState().num_processes,
        }
        provenance = finetuned.predictions.provenance
        provenance = {**provenance, "trained": trained.name, "stage": self.cache.key(name, settings)}

        def build(directory: Path) -> None:
            args = dataclasses.replace(self.args, output_dir=str(directory / "checkpoints"), push_to_hub=False)
            tokenizer = load_tokenizer(spec.path, revision=spec.revision)
            model = self.finished(spec, trained / "model")
            tokenize = partial(self.tokenize, spec, tokenizer)
            trainer = self.setting.make_trainer(model, args, tokenizer, rows.train, rows.validation, tokenize)
            _prepare_to_predict(trainer)
            self._predict(trainer, spec, tokenizer, predict, provenance, directory)
            trainer.accelerator.free_memory()
            if trainer.is_world_process_zero():
                shutil.rmtree(directory / "checkpoints", ignore_errors=True)  # an empty directory of the trainer

        return self.setting.labels.load(self.cache.run(name, settings, build, title=title) / "predictions")

    def _predict(
        self,
        trainer: Trainer,
        spec: ModelSpec,
        tokenizer: PreTrainedTokenizerBase,
        predict: list[Dataset],
        provenance: dict,
        directory: Path,
    ) -> None:
        """Predicts rows and writes `predictions/` to a directory."""
        rows = concatenate_datasets([part.select_columns(list(self.setting.columns)) for part in predict])
        predictions = self.setting.predict(trainer, rows, partial(self.tokenize, spec, tokenizer), directory)
        if trainer.is_world_process_zero():
            self.setting.labels(list(rows["id"]), predictions, provenance).save(directory / "predictions")
            shutil.rmtree(directory / "completions", ignore_errors=True)  # finished batches of an interrupted run

    def settings_of(self, changes: dict) -> dict:
        """
        Returns every training argument that can change a result, as JSON values. A new argument may cause a needless
        rebuild, but never a stale result.
        """
        # dataclasses.replace would create TrainingArguments, which resets accelerate's state.
        values = {f.name: getattr(self.args, f.name) for f in dataclasses.fields(self.args)} | changes
        defaults = {f.name: f.default for f in dataclasses.fields(self.args)}
        read = LOSS_ARGUMENTS.get(values.get("loss_type", ""), ())
        # Options that the loss does not read change no result. The supervisor does not depend on the students' losses.
        values |= {name: defaults[name] for name in ALL_LOSS_ARGUMENTS if name in values and name not in read}
        if values.get("aux_start") == "first_step":
            del values["aux_start"]  # older versions have keys without this option
        return {name: str(value) for name, value in values.items() if name not in WITHOUT_EFFECT}

    def settings_of_predictions(self, spec: ModelSpec) -> dict:
        """Returns the settings of a stage that predicts with a model: the model, its precision, and the processes."""
        precision, n_processes = [self.args.bf16, self.args.fp16], PartialState().num_processes
        return {"model": spec.identity, "mixed_precision": precision, "n_processes": n_processes}

    def untrained(
        self, spec: ModelSpec, tokenizer, seed: int, form: PromptFormat | None = None
    ) -> PreTrainedModel | PeftModel:
        """
        Returns the model with a new head and new adapters. The base model of a student stays loaded
        for the next student.

        Args:
            spec ([`ModelSpec`]): The model.
            tokenizer: Its tokenizer.
            seed (`int`): Seeds head and adapters.
            form ([`PromptFormat`], *optional*): The answers of `--head_init answers`, see [`prompt_of_head`].
        """
        config, has_head = spec.config, self.setting.task_type != "CAUSAL_LM"
        head: dict[str, Any] = {"seed": seed, "tokenizer": tokenizer}
        head["answers"] = None if form is None else head_tokens(tokenizer, form)
        if not config.use_peft:
            self.release()
            set_seed(seed)
            untrained = load_base(spec, self.setting.task_type)
            if has_head:
                initialise_head(untrained, config.head_init, **head)
            return untrained
        key = (spec.path, spec.revision, str(config))  # spec.version also depends on adapters
        if self._base is None or self._base[0] != key:
            self.release()
            self._base = (key, load_base(spec, self.setting.task_type))
        student = fresh_adapter(self._base[1], peft_config_of(spec, self.setting.task_type), seed=seed)
        if spec.adapters is not None:
            load_adapter_weights(student, spec.adapters)
        if has_head:
            initialise_head(student, config.head_init, **head)
        self._base = (key, student)
        return student

    def finished(self, spec: ModelSpec, directory: Path) -> PreTrainedModel | PeftModel:
        """Loads a finetuned model from the `model/` of its stage."""
        self.release()
        if not spec.config.use_peft:
            return load_base(spec, self.setting.task_type, directory)
        # load_student is not used, since it may use another precision. The model is not trained again, but trainers
        # refuse models that are not trainable.
        base = load_base(spec, self.setting.task_type)
        return PeftModel.from_pretrained(base, str(directory), is_trainable=True).eval()

    def in_place(self, network: Network) -> Network:
        """Moves a model to the device of the training and sets it to eval mode."""
        if not getattr(network, "is_quantized", False):  # bitsandbytes has moved the model
            network.to(self.args.device)
        return network.eval()

    def release(self) -> None:
        """Drops the loaded base model and frees its memory."""
        self._base = None
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def tokenize(self, spec: ModelSpec, tokenizer, rows: Dataset) -> Dataset:
        """Returns the token columns and labels of rows. Each set of rows is tokenized once per tokenizer."""
        identity = tokenizer.backend_tokenizer.to_str() if tokenizer.is_fast else spec.path
        # The tokenizers of two models of a family may differ only in these tokens and the template.
        identity += f" {tokenizer.bos_token} {tokenizer.eos_token} {tokenizer.chat_template}"
        key = (hashlib.sha256(identity.encode()).hexdigest(), self.fingerprint(rows, with_labels=False))
        setting = self.setting
        if key not in self._tokenized:
            tokenized = setting.tokenize(rows.select_columns(list(setting.columns)), tokenizer, self.args.max_length)
            self._tokenized[key] = tokenized.remove_columns([name for name in setting.columns if name != "id"])
        tokenized = self._tokenized[key]
        return setting.add_labels(tokenized, rows) if setting.label_column in rows.column_names else tokenized

    def fingerprint(self, rows: Dataset, with_labels: bool = True) -> str:
        """
        Returns a hash of the texts of rows in order, and of their labels, weights and labels of each supervisor, if
        there are any.
        """
        digest = hashlib.sha256()
        for row in zip(*(rows[column][:] for column in self.setting.columns), strict=True):
            digest.update(("\0".join(map(str, row)) + "\n").encode())
        if with_labels and self.setting.label_column in rows.column_names:
            labels = rows[self.setting.label_column][:]
            is_text = isinstance(labels[0], str)
            digest.update(json.dumps(labels).encode() if is_text else np.asarray(labels, dtype=np.float32).tobytes())
        for name in ("weight", "supervisor_labels"):
            if with_labels and name in rows.column_names:
                digest.update(np.asarray(rows[name][:], dtype=np.float32).tobytes())
        return digest.hexdigest()[:16]
