"""Writes the model card of a trainer's student, and uploads the card and the student to the Hub."""

import time
from concurrent.futures import Future
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path, PurePath
from typing import Any

import numpy as np
from datasets import Dataset
from huggingface_hub import CommitInfo, HfApi
from peft import PeftModel
from transformers import PreTrainedModel, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from .._compat import commit_hash, save_model
from ..cards import FIGURE, StudentCard
from ..code_fingerprint import code_fingerprint
from ..config import CompletionConfig, LossArguments, hardware
from ..hub import PushError, commit_files, is_repository_id, owner_of_token
from ..losses import RowLoss
from ..modeling.heads import base_of
from ..plots import plot_gap
from ..probabilities import summary_of_weights
from ..publish import STUDENT_FILES, push_again, student_files
from ..training_settings import training_settings
from ..user_code import described
from .mixins import TrainerMixin

__all__ = ["StudentCardCallback", "WithStudentCard", "supervisor_weights_of"]

# These options of a quantization affect the outputs of a student.
_QUANTIZATION = {
    "load_in_4bit": ("bnb_4bit_quant_type", "bnb_4bit_use_double_quant", "bnb_4bit_compute_dtype"),
    "load_in_8bit": ("llm_int8_threshold",),
}
_LIBRARIES = ("w2s_hf", "torch", "transformers", "peft", "trl")


class StudentCardCallback(TrainerCallback):
    """
    Fills in a student card: settings and seed when training begins, time and hardware when it ends. After several
    training runs, such as the links of a chain, the card describes the last run. Values of the user are not replaced.

    Args:
        card ([`StudentCard`]): The card of the trainer.
        loss ([`~w2s_hf.losses.RowLoss`], *optional*): The trainer's own loss, which replaces `args.loss_type`.
    """

    def __init__(self, card: StudentCard, loss: RowLoss | None = None):
        self.card, self.loss = card, loss
        self._written: dict = {}
        self._started, self._is_whole = 0.0, True

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs) -> None:
        self._started = time.monotonic()
        by_user = {name: value for name, value in self.card.settings.items() if self._written.get(name) != value}
        if self.loss is not None:
            self._written = _settings_of(self.loss)
        else:
            self._written = args.loss_settings(args.loss_type) if isinstance(args, LossArguments) else {}
        self._written |= training_settings(args) | {"optimizer steps": state.max_steps}
        self.card.settings = self._written | by_user
        # The time before a resume is not known.
        self._is_whole = state.global_step == 0
        if self.card.run_name is None:
            self.card.run_name = args.run_name
        if self.card.seed is None:
            self.card.seed = args.seed
        if self.card.method is None and isinstance(args, LossArguments):
            name = "naive" if args.loss_type == "xent" else args.loss_type
            self.card.method = name if self.loss is None else described(self.loss).partition("(")[0]

    def on_train_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs) -> None:
        self.card.seconds = time.monotonic() - self._started if self._is_whole else None
        self.card.hardware = hardware()


class WithStudentCard(TrainerMixin):
    """
    A mixin for a [`~transformers.Trainer`] that adds `card`, a [`StudentCard`], and overrides:

    - `create_model_card`: writes this card, and replaces cards of PEFT and TRL.
    - `push_to_hub`: uploads only the files of the student, in one commit. [`~transformers.Trainer`] uploads its whole
      directory with `training_args.bin`, which contains paths, the machine's name, and possibly a token.
    """

    _card_setting = "classification"
    _card_task_type = "SEQ_CLS"

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        if not hasattr(self, "card"):  # all links of a chain share one card
            self.card = StudentCard(setting=self._card_setting, task_type=self._card_task_type)
            self.add_callback(StudentCardCallback(self.card, getattr(self, "_loss", None)))

    def create_model_card(  # type: ignore[override]  # transformers has another order than TRL
        self,
        model_name: str | None = None,
        dataset_name: str | None = None,
        tags: str | list[str] | None = None,
        **kwargs,
    ) -> None:
        """
        Writes `trainer.card`, completed with data of the model, to `README.md` in `args.output_dir`. If the card has
        all three scores, a figure of the performance gap is also written.

        Args:
            model_name (`str`, *optional*): Accepted for compatibility. The title names base model and supervisor.
            dataset_name (`str`, *optional*): The dataset of the training rows, if the card names no dataset.
            tags (`str` or `list[str]`, *optional*): Additional tags.
            kwargs: `language`, `license` and other arguments of [`~transformers.Trainer.create_model_card`]. They are
                ignored.
        """
        if not self.is_world_process_zero():
            return
        card, directory = self.card, Path(self.args.output_dir)
        model = self.accelerator.unwrap_model(self.model)
        is_peft, base = isinstance(model, PeftModel), base_of(model)
        card.library_name = "peft" if is_peft else "transformers"
        name = base.config.name_or_path
        if card.base_model is None and name:
            card.base_is_on_hub = is_repository_id(name)
            card.base_model = name if card.base_is_on_hub else PurePath(name).name
            card.base_revision = commit_hash(base.config)
        card.dataset = card.dataset or dataset_name
        card.tags = list(dict.fromkeys([*card.tags, *([tags] if isinstance(tags, str) else tags or [])]))
        loading = _loading(base)
        card.loading = card.loading or loading
        # On a leaderboard, students of one base model in two precisions are different.
        card.settings = {"dtype": loading["dtype"], **loading.get("quantization_config", {})} | card.settings
        names = getattr(base.config, "id2label", None) or {}
        if card.class_names is None and not any(str(name).startswith("LABEL_") for name in names.values()):
            card.class_names = [str(names[position]) for position in sorted(names)] or None
        if is_peft:
            config = model.active_peft_config.to_dict()
            config = {name: sorted(value) if isinstance(value, set) else value for name, value in config.items()}
            names = ("peft_type", "r", "lora_alpha", "target_modules")
            card.settings |= {
                f"adapters, {name}": getattr(config[name], "value", config[name]) for name in names if config.get(name)
            }
        if isinstance(self.args, CompletionConfig):
            card.max_new_tokens = self.args.max_new_tokens
        train_rows = self.train_dataset
        if isinstance(train_rows, Dataset) and "weight" in train_rows.column_names:
            card.row_weights = summary_of_weights(np.asarray(train_rows.with_format("python")["weight"][:]))
        card.supervisor_weights = supervisor_weights_of(self.state.log_history) or card.supervisor_weights
        card.versions = card.versions or {name: version(name) for name in _LIBRARIES}
        directory.mkdir(parents=True, exist_ok=True)
        if card.weak and card.student and card.ceiling:
            plot_gap(card.weak, card.student, card.ceiling, card.pgr, directory / FIGURE, title=card.subject)
            card.has_figure = True
        card.save(directory / "README.md")

    def push_to_hub(  # type: ignore[override]  # transformers also returns `None` or a future
        self,
        commit_message: str | None = "End of training",
        blocking: bool = True,
        token: str | None = None,
        revision: str | None = None,
        private: bool | None = None,
        **kwargs,
    ) -> CommitInfo | Future[CommitInfo] | None:
        """
        Uploads adapters or model, head, tokenizer and card in one commit. Unlike
        [`~transformers.Trainer.push_to_hub`], it uploads no other file of the directory. Without `blocking`, a future
        is returned.

        Args:
            kwargs: Arguments of [`create_model_card`].

        Raises:
            PushError: The upload failed. The student is on disk, and the message has the command that pushes it again.
        """
        self.callback_handler.on_push_begin(self.args, self.state, self.control)
        args, directory, card = self.args, Path(self.args.output_dir), self.card
        token, revision = token or args.hub_token, revision or args.hub_revision
        private = args.hub_private_repo if private is None else private
        save_model(self)  # on all ranks
        if not self.is_world_process_zero():
            return None
        card.repo_id = None
        self.create_model_card(**kwargs)  # names the local path until the upload succeeds

        def push() -> CommitInfo:
            repo_id = self.hub_model_id or args.hub_model_id or directory.absolute().name
            try:
                if "/" not in repo_id:
                    repo_id = f"{owner_of_token(token)}/{repo_id}"
                self.hub_model_id = card.repo_id = repo_id  # type: ignore[assignment]  # transformers infers `None`
                commit = commit_files(
                    repo_id,
                    student_files(directory, card.render(), card.library_name),
                    message=commit_message or "End of training",
                    private=private,
                    replaces=STUDENT_FILES,
                    revision=revision,
                    token=token,
                )
            except PushError as error:
                options = {"repo_id": repo_id, "revision": revision, "hub_private": private}
                raise PushError(f"{error}\n{push_again(directory, options)}") from error
            card.save(directory / "README.md")
            return commit

        return push() if blocking else HfApi().run_as_future(push)


def supervisor_weights_of(history: list[dict]) -> list[float] | None:
    """Returns the final weights of the supervisors in a log history, or `None` if no weights were learned."""
    last: dict = next((entry for entry in reversed(history) if "supervisor_weight_1" in entry), {})
    return [value for name, value in last.items() if name.startswith("supervisor_weight_")] or None


def _settings_of(loss: RowLoss) -> dict[str, str]:
    """Returns the name of a loss of the user, and the hash of its code, as [`Method.settings`] does."""
    settings = {"loss": described(loss)}
    with suppress(TypeError):  # some callables have no hash, and the training needs none
        settings["code"] = code_fingerprint(loss)
    return settings


def _loading(base: PreTrainedModel) -> dict:
    """Returns the keyword arguments of [`load_student`] for the precision and quantization of a model."""
    loading: dict[str, Any] = {"dtype": str(base.dtype).removeprefix("torch.")}
    quantization = getattr(base.config, "quantization_config", None)
    if quantization is None:
        return loading
    options = quantization if isinstance(quantization, dict) else quantization.to_dict()
    for kind in _QUANTIZATION:
        if options.get(kind):
            loading["quantization_config"] = {kind: True} | {name: options[name] for name in _QUANTIZATION[kind]}
    return loading  # the model's configuration records other kinds of quantization
