"""A trainer's card: what it knows of its student, and the push that takes both to the Hub."""

import time
from importlib.metadata import version
from pathlib import Path

import torch
from huggingface_hub import CommitInfo
from peft import PeftModel
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from ..cards import StudentCard
from ..config import LossArguments
from ..hub import PushError, commit_files, owner_of_token
from ..publish import STUDENT_FILES, student_files

__all__ = ["StudentCardCallback", "WithStudentCard"]

_LIBRARIES = ("w2s_hf", "torch", "transformers", "peft", "trl")


class StudentCardCallback(TrainerCallback):
    """
    Fills in what a trainer knows of its student: settings and seed when the training begins, time and hardware when
    it ends. What a user has set of them is left alone.

    Args:
        card ([`StudentCard`]): Of the trainer.
    """

    def __init__(self, card: StudentCard):
        self.card = card
        self._started = 0.0

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs) -> None:
        self._started = time.monotonic()
        settings = args.loss_settings(args.loss_type) if isinstance(args, LossArguments) else {}
        settings |= {"learning_rate": args.learning_rate, "optimizer steps": state.max_steps}
        settings["rows per optimizer step"] = (
            args.train_batch_size * args.gradient_accumulation_steps * args.world_size
        )
        self.card.settings = settings | self.card.settings
        if self.card.seed is None:
            self.card.seed = args.seed
        if self.card.method is None and isinstance(args, LossArguments):
            self.card.method = "naive" if args.loss_type == "xent" else args.loss_type

    def on_train_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs) -> None:
        self.card.seconds = (self.card.seconds or 0.0) + time.monotonic() - self._started
        device = args.device
        name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type.upper()
        self.card.hardware = name if args.world_size == 1 else f"{args.world_size} x {name}"


class WithStudentCard:
    """
    Mixed in before a [`~transformers.Trainer`]: `card`, a [`StudentCard`], and in place of the trainers' own

    - `create_model_card`: writes that card over whatever PEFT and TRL have written;
    - `push_to_hub`: one commit of what the student is made of. [`~transformers.Trainer`] uploads its whole directory,
      with `training_args.bin`, which has paths, the name of the machine and perhaps a token in it.
    """

    _card_setting = "classification"
    _card_task_type = "SEQ_CLS"

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        if not hasattr(self, "card"):  # a chain has one
            self.card = StudentCard(setting=self._card_setting, task_type=self._card_task_type)
            self.add_callback(StudentCardCallback(self.card))

    def create_model_card(
        self,
        model_name: str | None = None,
        dataset_name: str | None = None,
        tags: str | list[str] | None = None,
        **kwargs,
    ) -> None:
        """
        Writes `README.md` into `args.output_dir`: `trainer.card`, and what the model says of itself.

        Args:
            model_name (`str`, *optional*): For compatibility; a card is called by its base and its supervisor.
            dataset_name (`str`, *optional*): Of the training rows, if the card does not say.
            tags (`str` or `list[str]`, *optional*): More tags.
            kwargs: `language`, `license` and others of [`~transformers.Trainer.create_model_card`]: not on the card.
        """
        if not self.is_world_process_zero():
            return
        card = self.card
        model = self.accelerator.unwrap_model(self.model)
        is_peft = isinstance(model, PeftModel)
        base = model.get_base_model() if is_peft else model
        card.library_name = "peft" if is_peft else "transformers"
        name = base.config.name_or_path
        if card.base_model is None and name:
            is_local = Path(name).is_dir() or Path(name).is_absolute()
            card.base_model = Path(name).name if is_local else name
            card.base_is_on_hub = not is_local
            card.base_revision = None if is_local else getattr(base.config, "_commit_hash", None)
        card.dataset = card.dataset or dataset_name
        card.tags = [*card.tags, *([tags] if isinstance(tags, str) else tags or [])]
        if not card.loading:
            card.loading = _loading(base, is_peft)
        if card.task_type == "CAUSAL_LM":
            card.max_new_tokens = self.args.max_new_tokens
        card.versions = card.versions or {name: version(name) for name in _LIBRARIES}
        Path(self.args.output_dir).mkdir(parents=True, exist_ok=True)
        card.save(Path(self.args.output_dir) / "README.md")

    def push_to_hub(
        self,
        commit_message: str | None = "End of training",
        blocking: bool = True,
        token: str | None = None,
        revision: str | None = None,
        private: bool | None = None,
        **kwargs,
    ) -> CommitInfo | None:
        """
        As [`~transformers.Trainer.push_to_hub`]: adapters or model, head, tokenizer and card, in one commit, and
        nothing else of the directory.

        Args:
            kwargs: As of [`create_model_card`].

        Raises:
            PushError: the Hub did not take it. The student is on disk, and the message says how to push it again.
        """
        self.callback_handler.on_push_begin(self.args, self.state, self.control)
        token = token or self.args.hub_token
        directory = Path(self.args.output_dir)
        self.save_model(_internal_call=True)  # on all ranks
        if not self.is_world_process_zero():
            return None
        repo_id = self.hub_model_id or self.args.hub_model_id or directory.absolute().name
        try:
            if "/" not in repo_id:
                repo_id = f"{owner_of_token(token)}/{repo_id}"
            self.hub_model_id = self.card.repo_id = repo_id
            self.create_model_card(**kwargs)
            return commit_files(
                repo_id,
                student_files(directory, self.card.render()),
                message=commit_message or "End of training",
                private=self.args.hub_private_repo if private is None else private,
                replaces=STUDENT_FILES,
                revision=revision or self.args.hub_revision,
                token=token,
                blocking=blocking,
            )
        except PushError as error:
            self.card.repo_id = None
            self.create_model_card(**kwargs)  # the student is where it was
            raise PushError(
                f"{error}\nNothing is lost: the student is in {directory}. Push it again with trainer.push_to_hub(), "
                f"or with\n    python -m w2s_hf.publish {directory} --repo_id {repo_id}"
            ) from error


def _loading(base: torch.nn.Module, is_peft: bool) -> dict:
    """Keyword arguments of [`load_student`] that load a base as it is here."""
    if not is_peft:
        return {"dtype": "float32"}
    quantization = getattr(base.config, "quantization_config", None)
    dtype = str(base.config.dtype).removeprefix("torch.")
    if quantization is None:
        return {"dtype": dtype}
    options = quantization if isinstance(quantization, dict) else quantization.to_dict()
    if options.get("load_in_4bit"):
        names = ("load_in_4bit", "bnb_4bit_quant_type", "bnb_4bit_use_double_quant", "bnb_4bit_compute_dtype")
    else:
        names = ("load_in_8bit",)
    return {"quantization_config": {name: options[name] for name in names if name in options}, "dtype": dtype}
