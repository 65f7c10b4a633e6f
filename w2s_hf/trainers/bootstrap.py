"""The trainer of a bootstrapping chain: each student is trained on the labels of the previous student."""

import math
import os
import shutil
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import numpy as np
from accelerate.utils import broadcast_object_list, release_memory
from datasets import Dataset, List, Value
from huggingface_hub import CommitInfo
from peft import PeftConfig, PeftModel
from transformers import (
    BitsAndBytesConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    TrainerState,
    enable_full_determinism,
    set_seed,
)
from transformers.trainer_utils import TrainOutput

from .._compat import save_model
from ..code_fingerprint import code_fingerprint
from ..config import BootstrapConfig
from ..labels import WeakLabels
from ..losses import RowLoss
from .chain import (
    ChainDirectory,
    NoStudent,
    chain_settings,
    labels_of,
    refuse_other_words,
    row_ids,
    rows_of_links,
    unlabelled,
)
from .checkpoints import last_complete_checkpoint
from .checks import check_arguments, check_loss, check_weights, refuse_misspelt
from .row_loss import check_row_loss
from .student_card import WithStudentCard
from .weak_to_strong import WeakToStrongTrainer
from .whole_step import load_model

__all__ = ["BootstrapTrainer"]

_MODEL_INPUTS = ("input_ids", "attention_mask", "token_type_ids", "position_ids", "inputs_embeds")

_Labels = dict[str, WeakLabels]  # labels by split: "train", and "eval" if there are evaluation rows


class BootstrapTrainer(WeakToStrongTrainer):
    """
    A [`WeakToStrongTrainer`] for a chain of students M1, M2, ..., Mn from small to large. M1 is trained on the weak
    labels, M2 on the labels of M1, and so on. Successive models therefore differ little in size (paper, 4.3.1). The
    paper trains such a chain on chess, with three links on separate rows.

    Each link is trained exactly as by a separate [`WeakToStrongTrainer`], with its own seed, optimizer, schedule and
    state. It is trained only on the labels of the previous link. Other label columns of its rows are removed. Its base
    model is loaded after the previous model is freed, so that a chain needs the memory of its largest link.

    Files that `train` writes to `args.output_dir`:

    - `link-1/`, `link-2/`, ...: the finished student with its tokenizer (as `save_model` writes it), and its
      `trainer_state.json`. `link.json` has the fingerprint of its training labels. `labels/train` and `labels/eval`
      have its [`WeakLabels`] for the rows of the next link. While a link is running, the directory holds its
      checkpoints, and `link-<k>.partial/` its finished files.
    - `chain.json`: the settings of the chain.

    Overridden methods, and the reasons:

    - `train`: trains one link after another. It calls the constructor of [`WeakToStrongTrainer`] for each link. The
      constructor sets up all parts that depend on a model (device placement, collator, label names).
    - `_get_output_dir`: puts the checkpoints of a link into its directory.
    - `log`: adds `link` to every entry, since each link counts its steps from 0.
    - `push_to_hub`: uploads only the last student.

    Args:
        model_init (`Callable[[int], PreTrainedModel | PeftModel | str]`):
            Returns the untrained model of link 0, 1, ..., `n_links - 1`, or its Hub id or local directory. It is
            called when the link begins, with the seed set, and must not keep a reference to the model. All models
            have the same classes.
        n_links (`int`): The number of students.
        args ([`BootstrapConfig`], *optional*): The arguments of all links. Defaults to `BootstrapConfig()`.
        data_collator (`Callable`, *optional*): As in [`WeakToStrongTrainer`].
        train_dataset ([`~datasets.Dataset`] or `list[Dataset]`):
            One dataset with labels for all links, or a list with a dataset for each link. A single dataset is
            relabelled after each link. In a list, only the first dataset needs labels. The columns are as in
            [`WeakToStrongTrainer`]. Labels are matched to rows by `id`, or by position if there is no `id`. A column
            `weight` is kept for every link that is trained on these rows.
        eval_dataset ([`~datasets.Dataset`] or `list[Dataset]`, *optional*):
            One dataset or a list for evaluation. Its rows are relabelled, too. Evaluations and the choice of the best
            checkpoint use the labels of the link's supervisor. From the second link on, `compute_metrics` gets these
            labels as `(N, C)` float32. With `hard_labels`, it gets `(N,)` integers.
        processing_class ([`~transformers.PreTrainedTokenizerBase`] or a list of them, *optional*):
            The tokenizer of all links, or a list with a tokenizer for each link. Different vocabularies need rows of
            text. The tokenizer is loaded if the model is a name.
        quantization_config, peft_config (*optional*): As in [`WeakToStrongTrainer`], for every link.
        loss ([`~w2s_hf.losses.RowLoss`], *optional*): As in [`WeakToStrongTrainer`], for every link. It must be a
            function or a `functools.partial` of a function. A resumed chain compares its code.
        kwargs: The arguments `compute_metrics`, `callbacks`, `optimizer_cls_and_kwargs` and
            `preprocess_logits_for_metrics` of [`~transformers.Trainer`]. Callbacks are called for all links.

    Raises:
        ValueError: There is no link. The number of datasets or tokenizers differs from the number of links. Rows are
            not a dataset, are empty, or have neither tokens nor text. Ids repeat. The first dataset has no labels. An
            unused column looks like labels or weights. Weights are invalid. The loss is for two classes and labels
            have more. Tokenized rows are used with different tokenizers. There are `optimizers`, which belong to one
            model. `args` is not a [`BootstrapConfig`] or has `use_liger_kernel=True`.
        TypeError: The loss is another kind of callable, or depends on a value whose change would not be noticed.

    Example:

    ```python
    sizes = ["Qwen/Qwen2.5-0.5B", "Qwen/Qwen2.5-1.5B", "Qwen/Qwen2.5-7B"]
    trainer = BootstrapTrainer(
        model_init=lambda link: sizes[link],
        n_links=3,
        args=BootstrapConfig(output_dir="out"),
        train_dataset=[weak_labels.join(first_rows), second_rows, third_rows],
        peft_config=LoraConfig(task_type="SEQ_CLS", target_modules="all-linear"),
    )
    trainer.train()
    probabilities = trainer.predict_proba(test_rows)  # by the last student
    ```
    """

    args: BootstrapConfig
    _link: int | None = None

    def __init__(
        self,
        model_init: Callable[[int], PreTrainedModel | PeftModel | str],
        n_links: int,
        args: BootstrapConfig | None = None,
        data_collator: Callable | None = None,
        train_dataset: Dataset | list[Dataset] | None = None,
        eval_dataset: Dataset | list[Dataset] | None = None,
        processing_class: PreTrainedTokenizerBase | list[PreTrainedTokenizerBase] | None = None,
        *,
        quantization_config: BitsAndBytesConfig | None = None,
        peft_config: PeftConfig | None = None,
        loss: RowLoss | None = None,
        **kwargs,
    ):
        args = BootstrapConfig() if args is None else args
        check_arguments(args, BootstrapConfig)
        check_row_loss(loss, args)
        self._loss, self._loss_code = loss, None
        if loss is not None:
            try:
                self._loss_code = code_fingerprint(loss)
            except TypeError as error:
                raise TypeError(f"loss: {error}") from error
        if n_links < 1:
            raise ValueError(f"n_links: got {n_links}, expected at least 1. Set it to 1 or more.")
        if "optimizers" in kwargs:
            raise ValueError(
                "Got optimizers, expected no optimizers, since they belong to one model, and every link has another "
                "model. Set optim, or pass optimizer_cls_and_kwargs."
            )
        self.n_links = n_links
        self._make_student = model_init
        self._chain = ChainDirectory(Path(args.output_dir), n_links)
        self._rows = {"train": rows_of_links(train_dataset, "train_dataset", n_links, args.dataset_text_field)}
        if eval_dataset is not None:
            self._rows["eval"] = rows_of_links(eval_dataset, "eval_dataset", n_links, args.dataset_text_field)
        if args.remove_unused_columns:
            reads = ("label", "labels", "label_ids", "weight", args.dataset_text_field, *_MODEL_INPUTS)
            for name, (first, *others) in self._rows.items():
                for rows in (first, *map(unlabelled, others)):
                    refuse_misspelt(rows, f"{name}_dataset", labels="labels", reads=reads, optional=("weight",))
        for number, rows in enumerate(self._rows["train"], 1):
            check_weights(rows, f"train_dataset of link {number}")
        self._first_labels = {name: labels_of(parts[0], f"{name}_dataset") for name, parts in self._rows.items()}
        check_loss(args.loss_type, self._first_labels["train"].probabilities.shape[1])
        tokenizers = processing_class if isinstance(processing_class, list) else [processing_class] * n_links
        if len(tokenizers) != n_links:
            raise ValueError(
                f"processing_class: got {len(tokenizers)} tokenizers for {n_links} links, expected one tokenizer per "
                "link. Pass one tokenizer if all links share it."
            )
        self._tokenizers = tokenizers
        refuse_other_words(tokenizers, self._rows, args.dataset_text_field)
        self._adapting: dict[str, Any] = {"quantization_config": quantization_config, "peft_config": peft_config}
        callbacks = kwargs.pop("callbacks", None)
        self._trainer_kwargs = {"data_collator": data_collator, **kwargs}
        # The constructor of WeakToStrongTrainer needs a student. `train` calls it for each link.
        WithStudentCard.__init__(
            self,
            model=NoStudent(),
            args=args,
            train_dataset=self._rows["train"][0],
            eval_dataset=None if eval_dataset is None else self._rows["eval"][0],
            processing_class=tokenizers[0],
            callbacks=callbacks,
            **self._trainer_kwargs,
        )
        self.card.method = "bootstrap"

    # ---- Training ----

    def train(
        self,
        resume_from_checkpoint: str | os.PathLike | bool | None = None,
        trial: dict | None = None,
        ignore_keys_for_eval: list[str] | None = None,
    ) -> TrainOutput:
        """
        Trains all links.

        Args:
            resume_from_checkpoint (`bool`, *optional*):
                Whether to resume the chain in `args.output_dir`. Finished links are not trained again, and an
                interrupted link resumes from its last checkpoint. By default a new chain begins, and checkpoints of
                an interrupted chain are removed.
            trial, ignore_keys_for_eval: As in [`~transformers.Trainer.train`].

        Returns:
            [`~transformers.trainer_utils.TrainOutput`] of the last link. The [`~transformers.TrainerState`] of each
            link is in its directory.

        Raises:
            ValueError: There is no chain to resume, or its settings differ. `resume_from_checkpoint` is a path. A new
                chain would overwrite finished links in `args.output_dir`. The model and the labels have different
                numbers of classes. Rows are tokenized with another vocabulary.
        """
        if isinstance(resume_from_checkpoint, str | os.PathLike):
            raise ValueError(
                f"resume_from_checkpoint: got {str(resume_from_checkpoint)!r}, expected True, which finds the last "
                f"checkpoint of the interrupted link in {self.args.output_dir}. Set it to True."
            )
        chain = self._chain
        settings = chain_settings(self.args, self._rows, self._first_labels, self._adapting)
        if self._loss is not None:
            settings["loss"] = self._loss_code
        n_finished = self._on_main_process(chain.resume if resume_from_checkpoint else chain.begin, settings)
        labels = self._first_labels
        for link in range(self.n_links):
            if link < n_finished:
                chain.check_labels(link, labels)
                if link < self.n_links - 1:
                    labels = {name: WeakLabels.load(chain.link(link) / "labels" / name) for name in self._rows}
                    continue
                self._begin(link, labels)
                return self._load(chain.link(link))
            self._begin(link, labels)
            if self._on_main_process(chain.is_trained, link):
                output = self._load(chain.aside(link))
            else:
                checkpoint = last_complete_checkpoint(chain.link(link)) if resume_from_checkpoint else None
                output = super().train(checkpoint, trial, ignore_keys_for_eval)
                self._save_student(link, labels)
            labels = self._finish(link, labels)
        return output

    def _get_output_dir(self, trial: dict | None) -> str:
        return super()._get_output_dir(trial) if self._link is None else str(self._chain.link(self._link))

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        super().log(logs if self._link is None else {**logs, "link": self._link + 1}, start_time)

    def _begin(self, link: int, labels: _Labels) -> None:
        """Sets up this trainer for a link: its model, and its rows with `labels`."""
        args = self.args
        self._forget_student()
        enable_full_determinism(args.seed) if args.full_determinism else set_seed(args.seed)
        student = self._make_student(link)
        if student is None:
            raise ValueError(f"model_init({link}): got None, expected a model or its name. Return a model or name.")
        model, tokenizer = load_model(student, args, self._tokenizers[link], "SEQ_CLS", **self._adapting)
        refuse_other_words([self.processing_class, tokenizer], self._rows, args.dataset_text_field)
        n_classes = labels["train"].probabilities.shape[1]
        if link > 0 and model.config.num_labels != n_classes:
            raise ValueError(
                f"model_init({link}): got a model of {model.config.num_labels} classes, expected {n_classes}, as many "
                f"as the labels of link {link}. Load all models with the same num_labels."
            )
        rows = {name: parts[link] for name, parts in self._rows.items()}
        if link > 0:
            rows = {name: self._with_labels(part, labels[name]) for name, part in rows.items()}
        # All links share the callbacks, including callbacks that were added later. The repository already exists.
        callbacks, push_to_hub = self.callback_handler.callbacks, args.push_to_hub
        args.push_to_hub = False
        try:
            super().__init__(
                model=model,
                args=args,
                train_dataset=rows["train"],
                eval_dataset=rows.get("eval"),
                processing_class=tokenizer,
                loss=self._loss,
                **self._trainer_kwargs,
            )
        finally:
            args.push_to_hub = push_to_hub
        self.callback_handler.callbacks = callbacks
        self._link = link

    def _forget_student(self) -> None:
        """Drops all references to the model of the previous link, to free it before the next one is loaded."""
        self._link = None
        self.model = self.model_wrapped = NoStudent()
        self.optimizer = self.lr_scheduler = self.deepspeed = None
        handler = self.callback_handler
        handler.model = handler.optimizer = handler.lr_scheduler = None
        self.accelerator.free_memory()
        release_memory()  # free_memory collects garbage before it drops its own references

    def _load(self, directory: Path) -> TrainOutput:
        """Loads the trained student of this link from a directory, and returns the summary of its training."""
        self.state = state = TrainerState.load_from_json(str(directory / "trainer_state.json"))
        state.is_world_process_zero = self.is_world_process_zero()  # rank 0 wrote the state
        state.is_local_process_zero = self.is_local_process_zero()
        self._load_from_checkpoint(str(directory))
        summary: dict[str, float] = next((entry for entry in reversed(state.log_history) if "train_loss" in entry), {})
        return TrainOutput(state.global_step, summary.get("train_loss", math.nan), summary)

    def _save_student(self, link: int, labels: _Labels) -> None:
        aside = self._chain.aside(link)
        if self.args.should_save:
            shutil.rmtree(aside, ignore_errors=True)
        self.accelerator.wait_for_everyone()
        save_model(self, str(aside))
        self.state.best_model_checkpoint = None  # the checkpoints of the link are removed
        if self.args.should_save:
            self.state.save_to_json(str(aside / "trainer_state.json"))
            self._chain.record(link, labels)

    def _finish(self, link: int, labels: _Labels) -> _Labels:
        """Labels the rows of the next link, and moves all files of this link into place."""
        new_labels = {}
        if link + 1 < self.n_links:
            new_labels = {name: self._label(link, parts[link + 1], labels) for name, parts in self._rows.items()}
        if self.args.should_save:
            for name, of_rows in new_labels.items():
                of_rows.save(self._chain.aside(link) / "labels" / name)
            self._chain.finish(link)
        self.accelerator.wait_for_everyone()
        return new_labels

    # ---- Labels ----

    def _label(self, link: int, rows: Dataset, labels: _Labels) -> WeakLabels:
        """Labels rows with the student of this link. The provenance has the fingerprint of the training labels."""
        probabilities = self.predict_proba(unlabelled(rows))
        if self.args.hard_labels:
            probabilities = np.eye(probabilities.shape[1], dtype=np.float32)[probabilities.argmax(axis=1)]
        provenance = {
            "link": link + 1,
            "trained_on": labels["train"].fingerprint,
            "hard_labels": self.args.hard_labels,
            "seed": self.args.seed,
        }
        return WeakLabels(row_ids(rows), probabilities, provenance)

    def _with_labels(self, rows: Dataset, labels: WeakLabels) -> Dataset:
        probabilities = labels.of(row_ids(rows))
        rows = unlabelled(rows)
        if self.args.hard_labels:
            return rows.add_column("labels", probabilities.argmax(axis=1).tolist(), feature=Value("int64"))
        return rows.add_column("labels", probabilities.tolist(), feature=List(Value("float32")))

    # ---- Helpers ----

    def _on_main_process(self, function: Callable, *args):
        """Calls a function on rank 0. Returns its result or raises its error on every rank."""
        result: list[Any] = [None, None]
        if self.is_world_process_zero():
            try:
                result = [function(*args), None]
            except (ValueError, OSError, KeyError) as error:  # the other ranks would wait forever
                result = [None, str(error)]
        if self.accelerator.num_processes > 1:
            broadcast_object_list(result, from_process=0)
        if result[1] is not None:
            raise ValueError(result[1])
        return result[0]

    # ---- The Hub ----

    def push_to_hub(self, *args, **kwargs) -> CommitInfo | Future[CommitInfo] | None:  # type: ignore[override]  # as in its base
        """
        Uploads the files of the last link's student; see [`~transformers.Trainer.push_to_hub`].

        Raises:
            ValueError: The last link is not finished.
        """
        last = self.n_links - 1
        if self._link != last or not self._on_main_process(self._chain.is_finished, last):
            raise ValueError(
                f"push_to_hub: got a chain whose last link, {self._chain.link(last)}, is not finished, expected a "
                "finished chain. Call train(resume_from_checkpoint=True) first."
            )
        before = self.args.output_dir, self.args.hub_model_id
        self.args.hub_model_id = before[1] or Path(before[0]).absolute().name
        self.args.output_dir = str(self._chain.link(last))
        try:
            return super().push_to_hub(*args, **kwargs)
        finally:
            self.args.output_dir, self.args.hub_model_id = before
