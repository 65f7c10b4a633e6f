"""The arguments of the trainers and of the student model."""

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import torch
from accelerate import PartialState
from transformers import TrainingArguments
from transformers.trainer_utils import HubStrategy
from transformers.utils.logging import get_logger
from trl import ModelConfig, RewardConfig, SFTConfig

from ._compat import cpu_capabilities, is_torch_bf16_gpu_available, is_torch_xla_available
from .command_line import did_you_mean
from .losses import LOSS_ARGUMENTS, LOSS_TYPES, OWN_LOSS

__all__ = [
    "HEAD_INITS",
    "BootstrapConfig",
    "CompletionConfig",
    "LossArguments",
    "RewardPairConfig",
    "StudentConfig",
    "WeakToStrongConfig",
    "computes_in_bfloat16",
    "hardware",
    "warn_of_slow_bfloat16",
]

logger = get_logger(__name__)

if TYPE_CHECKING:

    class TrainerArguments(TrainingArguments):
        """The [`~transformers.TrainingArguments`] after `__post_init__`."""

        output_dir: str

else:
    # Only type checkers need this base class. The class that `_OwnDefaults` is mixed into has the fields.
    TrainerArguments = object

AUX_STARTS = ("first_step", "agreement")

HEAD_INITS = ("normal", "zeros", "unembedding", "answers")


def hardware() -> str:
    """Returns the devices of this run, `2 x NVIDIA H100 80GB HBM3` or `CPU`, without the name of the machine."""
    state = PartialState()
    name = torch.cuda.get_device_name(state.device) if state.device.type == "cuda" else state.device.type.upper()
    return name if state.num_processes == 1 else f"{state.num_processes} x {name}"


def computes_in_bfloat16(use_cpu: bool = False) -> bool:
    """
    Returns whether the device of a training run computes in bfloat16. The result is false for every CPU, so that all
    CPUs give the same numbers. The result is also false for CUDA devices that emulate bfloat16 (before Ampere).
    """
    if use_cpu or (torch.cuda.is_available() and not torch.cuda.is_bf16_supported(including_emulation=False)):
        return False
    return is_torch_bf16_gpu_available() or is_torch_xla_available()


def warn_of_slow_bfloat16() -> None:
    """
    Warns, once per process, about bfloat16 on a CPU without instructions for it. On CPUs with AVX-512, the bfloat16
    kernels of torch are at least as fast as the float32 kernels. With older versions of torch, which cannot list
    the instructions, there is no warning.
    """
    capabilities = cpu_capabilities()
    if capabilities and not any(capabilities.get(name, False) for name in ("avx512_bw", "amx_bf16", "bf16")):
        logger.warning_once(
            "Got bfloat16 on a CPU without instructions for it, where it is about 40 times slower than float32. Set "
            '--dtype float32 --bf16 false (in Python: dtype="float32", bf16=False).'
        )


@dataclass
class _OwnDefaults(TrainerArguments):
    """
    The defaults of all trainers that differ from [`~transformers.TrainingArguments`].

    If `bf16` has TRL's default, `None`, it becomes true on a device that computes in bfloat16, and false elsewhere.
    """

    ddp_find_unused_parameters: bool | None = field(
        default=False,
        metadata={
            "help": "With DDP, search for unused parameters in every step. The default is false, because a LoRA "
            "student uses all its parameters."
        },
    )
    hub_strategy: str = field(
        default="end",
        metadata={
            "help": "Time of the push to the Hub. Only `end` is supported (one push after training), because other "
            "strategies push files with local paths."
        },
    )

    def __post_init__(self):
        # Newer transformers warn about the old name, which older versions and TRL's defaults use.
        if getattr(self, "activation_checkpointing", False) is None:
            self.activation_checkpointing = self.gradient_checkpointing
        if self.bf16 is None and not self.fp16 and not computes_in_bfloat16(self.use_cpu):
            logger.warning_once(
                "bf16 is not set. The training uses float32, because it does not run on a GPU with bfloat16."
            )
            self.bf16 = False
        has_device = is_torch_bf16_gpu_available() or is_torch_xla_available()  # including emulation
        if (self.bf16 or self.bf16_full_eval) and not self.use_cpu and not has_device:
            name = "bf16" if self.bf16 else "bf16_full_eval"
            raise ValueError(
                f"{name}: got True on a machine without a GPU that computes in bfloat16, expected False. To train in "
                f"float32 on the CPU, set --use_cpu true --{name} false (in Python: use_cpu=True, {name}=False)."
            )
        if (self.bf16 or self.bf16_full_eval) and self.use_cpu:
            warn_of_slow_bfloat16()
        for name in ("eos_token", "pad_token", "chat_template_path"):
            if (value := getattr(self, name, None)) is not None:
                raise ValueError(
                    f"{name}: got {value!r}, expected None, because rows are tokenized before TRL uses this argument. "
                    "Change the tokenizer, and save it with the model (in Python, or pass it as processing_class)."
                )
        if getattr(self, "trust_remote_code", False):  # a field of newer configurations of TRL
            raise ValueError(
                "trust_remote_code: got True, expected False, because experiments run no code of model repositories. "
                "Remove it. For one trainer, set it in model_init_kwargs."
            )
        super().__post_init__()
        if not torch.accelerator.is_available():
            self.dataloader_pin_memory = False  # torch warns otherwise; transformers sets it only for use_cpu=True
        strategy = HubStrategy(self.hub_strategy)
        if self.push_to_hub and strategy != HubStrategy.END:
            raise ValueError(
                f"hub_strategy: got {strategy.value!r}, expected 'end', which pushes the student and its card after "
                "training. Other strategies push checkpoints with training_args.bin, which has local paths."
            )


@dataclass
class LossArguments(_OwnDefaults):
    r"""
    The arguments of the losses on soft labels, mixed into the configurations of the trainers.

    Args:
        loss_type (`str`, *optional*, defaults to `"xent"`):
            Loss on the weak labels, one of `w2s_hf.losses.LOSS_TYPES`, or `"own"` for a function that is passed to the
            trainer as `loss`. `"confidence"` is the paper's auxiliary
            confidence loss (appendix A.4); `"openai"` is the same loss under the schedule of the published code
            (openai/weak-to-strong, loss.py).
        aux_coef (`float`, *optional*, defaults to `0.5`):
            Final weight in [0, 1] of the auxiliary term of `confidence`, `openai` and `entropy`. The paper uses 0.75
            for its largest students and 0.5 for all others.
        aux_warmup_ratio (`float`, *optional*):
            Share of the optimizer steps over which this weight rises from 0. Defaults to 0.2 (paper), and to 0.1 for
            `openai` (published code).
        aux_start (`str`, *optional*, defaults to `"first_step"`):
            Step at which this weight starts to rise. `"agreement"` keeps the weight at 0 until the student agrees with
            its weak labels beyond chance, by three standard deviations. Agreement is measured over the latest half of
            the steps, with at least 128 rows and at most one epoch. Rows are predicted before the update of their
            step, so that the student has not seen them in the first epoch. With fewer than 128 training rows the
            weight stays 0, as in `"xent"`.
        aux_prior (`float`, *optional*):
            Share of the rows of an optimizer step whose hard prediction is class 1, for `confidence` and `openai`.
            Defaults to the mean weak label of these rows (paper, footnote 7). The paper uses 0.5 for balanced data.
        window_radius (`float`, *optional*, defaults to `0.15`):
            The loss `window` uses the rows in which the student's larger probability is below 0.5 + radius.
        product_alpha (`float`, *optional*, defaults to `1.0`):
            Exponent of the weak label in the target of `product`.
        product_beta (`float`, *optional*, defaults to `1.0`):
            Exponent of the student's own prediction in the target of `product`.
        adaptive_temperature (`float`, *optional*, defaults to `1.0`):
            Temperature of the row weights of `adaptive_confidence`.
        reverse_smoothing (`float`, *optional*, defaults to `0.1`):
            Share in (0, 1) of the uniform distribution in the weak labels of `reverse_kl`, `reverse_xent`, `symmetric`
            and `cace`. The loss of a hard label is infinite without it. With 0.1, two classes and a prediction of 0.5,
            the gradient of a hard label is 1.5 times its gradient in `xent`. A learning rate of `xent` can then be
            used.
        symmetric_alpha (`float`, *optional*, defaults to `1.0`):
            Weight of the cross-entropy in `symmetric`.
        symmetric_beta (`float`, *optional*, defaults to `0.1`):
            Weight of the reverse cross-entropy in `symmetric`. The defaults are those of the code for arXiv
            2505.24313.
        cace_threshold (`float`, *optional*, defaults to `0.25`):
            The loss `cace` is cross-entropy on rows with `max_c w_c - 1 / C` of at least this threshold in [0, 1], and
            reverse cross-entropy on other rows. With 0.25 and two classes, labels with a largest probability below
            0.75 have the reverse loss.
        supervisor_learning_rate (`float`, *optional*, defaults to `0.1`):
            Learning rate of the weights of the supervisors in `learned_supervisors`, for plain gradient descent
            without a schedule. With 0, the weights stay equal.
        supervisor_warmup_epochs (`float`, *optional*, defaults to `0.1`):
            Epochs at the beginning of the training in which these weights stay equal. The student has then learned
            from all supervisors before it weighs them. For a stream, all optimizer steps count as one epoch.
        max_tokens_per_micro_batch (`int`, *optional*):
            Split every batch, sorted by length, into micro-batches of at most this many padded tokens. The gradient is
            the same as for the whole batch, and the memory is the memory of one micro-batch. `None`: batches are not
            split.

    These defaults differ from `TrainingArguments`: `ddp_find_unused_parameters=False` (a LoRA student uses all its
    parameters) and `hub_strategy="end"` (one push, after the last step).

    Raises:
        ValueError: A value is outside its range, or `push_to_hub` is set and `hub_strategy` is not `"end"`.
    """

    loss_type: str = field(
        default="xent",
        metadata={
            "help": f"Loss on the weak labels: {', '.join(LOSS_TYPES)}. `xent` is plain cross-entropy. `w2s run` sets "
            "the loss for each of its --methods."
        },
    )
    aux_coef: float = field(
        default=0.5,
        metadata={
            "help": "Final weight in [0, 1] of the auxiliary term of `confidence`, `openai` and `entropy`. The paper "
            "uses 0.75 for its largest students and 0.5 for all others."
        },
    )
    aux_warmup_ratio: float | None = field(
        default=None,
        metadata={
            "help": "Share of the optimizer steps in which the weight of the auxiliary term rises from 0 to "
            "--aux_coef. Unset: 0.2 (paper), or 0.1 for `openai` (published code)."
        },
    )
    aux_start: str = field(
        default="first_step",
        metadata={
            "help": "Step at which the weight of the auxiliary term starts to rise. `first_step`: the first step "
            "(paper). `agreement`: the first step at which student and weak labels agree beyond chance. "
            "`agreement` is intended for short training runs, whose early predictions are random.",
            "choices": list(AUX_STARTS),
        },
    )
    aux_prior: float | None = field(
        default=None,
        metadata={
            "help": "Share of the rows of an optimizer step whose hard prediction is class 1, for `confidence` and "
            "`openai`. Unset: the mean weak label of these rows (paper, footnote 7). The paper uses 0.5 for balanced "
            "data."
        },
    )
    window_radius: float = field(
        default=0.15,
        metadata={
            "help": "Radius of the loss `window`, which uses only rows with a student confidence below 0.5 + radius. "
            "The default is the value of EleutherAI/w2s."
        },
    )
    product_alpha: float = field(
        default=1.0,
        metadata={
            "help": "Exponent of the weak label in the target of the loss `product`. The target is the normalized "
            "product of weak label and prediction."
        },
    )
    product_beta: float = field(
        default=1.0,
        metadata={
            "help": "Exponent of the student's prediction in the target of the loss `product`. The defaults weigh "
            "label and prediction equally."
        },
    )
    adaptive_temperature: float = field(
        default=1.0,
        metadata={
            "help": "Temperature of the row weights of the loss `adaptive_confidence`. With a lower temperature, the "
            "weights depend more on the student's confidence."
        },
    )
    reverse_smoothing: float = field(
        default=0.1,
        metadata={
            "help": "Share in (0, 1) of the uniform distribution in the weak labels of the losses `reverse_kl`, "
            "`reverse_xent`, `symmetric` and `cace`. The loss of a hard label is infinite without it. With 0.1, two "
            "classes and a prediction of 0.5, the gradient of a hard label is 1.5 times its gradient in `xent`."
        },
    )
    symmetric_alpha: float = field(
        default=1.0,
        metadata={
            "help": "Weight of the cross-entropy in the loss `symmetric`. The default is from the code for arXiv "
            "2505.24313."
        },
    )
    symmetric_beta: float = field(
        default=0.1,
        metadata={
            "help": "Weight of the reverse cross-entropy in the loss `symmetric`. The default is from the code for "
            "arXiv 2505.24313."
        },
    )
    cace_threshold: float = field(
        default=0.25,
        metadata={
            "help": "Confidence in [0, 1] from which the loss `cace` is cross-entropy instead of reverse "
            "cross-entropy. The confidence of a label is its largest probability minus 1 / number of classes. With "
            "0.25 and two classes, labels below 0.75 have the reverse loss."
        },
    )
    supervisor_learning_rate: float = field(
        default=0.1,
        metadata={
            "help": "Learning rate of the weights of the supervisors in the loss `learned_supervisors`. The weights "
            "sum to 1 and are learned by plain gradient descent, so their learning rate is larger than a student's. "
            "With 0, the weights stay equal."
        },
    )
    supervisor_warmup_epochs: float = field(
        default=0.1,
        metadata={
            "help": "Number of epochs at the beginning of the training in which the weights of the supervisors stay "
            "equal, for the loss `learned_supervisors`. The default is from arXiv 2510.21332."
        },
    )
    max_tokens_per_micro_batch: int | None = field(
        default=None,
        metadata={
            "help": "Split each batch into micro-batches of at most this number of tokens, with padding. This limits "
            "the memory and does not change the gradient. Unset: batches are not split."
        },
    )

    def __post_init__(self):
        super().__post_init__()
        if self.loss_type not in (*LOSS_TYPES, OWN_LOSS):
            raise ValueError(
                f"loss_type: got {self.loss_type!r}, expected one of {', '.join(LOSS_TYPES)}."
                + did_you_mean(self.loss_type, LOSS_TYPES)
            )
        if self.label_smoothing_factor:
            raise ValueError(
                f"label_smoothing_factor: got {self.label_smoothing_factor}, expected 0. Smooth the labels of the "
                "dataset instead, which may be probabilities."
            )
        if self.aux_start not in AUX_STARTS:
            raise ValueError(f"aux_start: got {self.aux_start!r}, expected {' or '.join(map(repr, AUX_STARTS))}.")
        for name in ("aux_coef", "aux_warmup_ratio", "aux_prior"):
            value = getattr(self, name)
            if value is not None and not 0 <= value <= 1:
                raise ValueError(f"{name}: got {value}, expected a share between 0 and 1. Set a value in this range.")
        if not 0 < self.window_radius <= 0.5:
            raise ValueError(
                f"window_radius: got {self.window_radius}, expected a value in (0, 0.5]. Set a value in this range."
            )
        if self.adaptive_temperature <= 0:
            raise ValueError(
                f"adaptive_temperature: got {self.adaptive_temperature}, expected a positive number. "
                "Set a value above 0."
            )
        if not 0 < self.reverse_smoothing < 1:
            raise ValueError(
                f"reverse_smoothing: got {self.reverse_smoothing}, expected a share above 0 and below 1. "
                "Set a value in this range."
            )
        alpha, beta = self.symmetric_alpha, self.symmetric_beta
        if not (alpha >= 0 and beta >= 0 and alpha + beta > 0):
            raise ValueError(
                f"Got symmetric_alpha={alpha} and symmetric_beta={beta}, expected two weights of at least 0, one of "
                "them positive. Set a positive weight."
            )
        if not 0 <= self.cace_threshold <= 1:
            raise ValueError(
                f"cace_threshold: got {self.cace_threshold}, expected a value between 0 and 1. "
                "Set a value in this range."
            )
        for name in ("supervisor_learning_rate", "supervisor_warmup_epochs"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise ValueError(
                    f"{name}: got {getattr(self, name)}, expected a finite number that is at least 0. Set such a "
                    "number."
                )
        for name in ("max_length", "max_tokens_per_micro_batch"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(
                    f"{name}: got {value}, expected a positive number of tokens, or None for no limit. "
                    "Set 1 or more, or None."
                )

    @property
    def has_auxiliary_term(self) -> bool:
        """Returns whether the loss has a term whose weight rises from 0 to `aux_coef`."""
        return "aux_coef" in LOSS_ARGUMENTS.get(self.loss_type, ())

    @property
    def resolved_aux_warmup_ratio(self) -> float:
        """The `aux_warmup_ratio`, or its default for this loss."""
        return self._warmup_ratio_of(self.loss_type)

    def _warmup_ratio_of(self, loss_type: str) -> float:
        if self.aux_warmup_ratio is not None:
            return self.aux_warmup_ratio
        return 0.1 if loss_type == "openai" else 0.2

    def loss_settings(self, loss_type: str) -> dict[str, str | float | None]:
        """Returns the name of a loss, and the arguments that it uses."""
        settings = {"loss_type": loss_type} | {name: getattr(self, name) for name in LOSS_ARGUMENTS.get(loss_type, ())}
        if "aux_warmup_ratio" in settings:
            settings["aux_warmup_ratio"] = self._warmup_ratio_of(loss_type)
        if settings.get("aux_start") == "first_step":
            del settings["aux_start"]  # as in older results, before this argument existed
        return settings


@dataclass
class WeakToStrongConfig(LossArguments, TrainingArguments):
    r"""
    The arguments of [`WeakToStrongTrainer`]: the fields of [`~transformers.TrainingArguments`] and [`LossArguments`],
    and the arguments below. `loss_type="xent"` with integer labels is the loss of [`~transformers.Trainer`].

    Args:
        max_length (`int`, *optional*, defaults to `512`):
            Longest row in tokens. If the trainer tokenizes a text column itself, longer texts are truncated at the end
            and counted in a warning. In rows of [`load_task`], the context is truncated instead. Rows with `input_ids`
            are not changed.
        dataset_text_field (`str`, *optional*, defaults to `"text"`):
            Column to tokenize if a dataset has no `input_ids`.
        disable_dropout (`bool`, *optional*, defaults to `True`):
            Whether to set every dropout of the model to 0. The published code trains without dropout. With dropout,
            the threshold of the confidence loss would depend on the split into micro-batches.
        model_init_kwargs (`dict`, *optional*):
            Keyword arguments of [`load_student`], for a trainer whose model is a name.
    """

    _VALID_DICT_FIELDS = [*TrainingArguments._VALID_DICT_FIELDS, "model_init_kwargs"]
    _argument_group_name = "training (every TrainingArguments field, and the weak-to-strong losses)"

    max_length: int | None = field(
        default=512,
        metadata={
            "help": "Maximum length of a row in tokens, by default the limit of BERT. Longer texts are truncated."
        },
    )
    dataset_text_field: str = field(
        default="text", metadata={"help": "Column to tokenize if a dataset has no input_ids."}
    )
    disable_dropout: bool = field(
        default=True, metadata={"help": "Set every dropout probability of the model to 0, as in the published code."}
    )
    model_init_kwargs: dict | str | None = field(
        default=None, metadata={"help": "Keyword arguments of load_student, for a model that is loaded by name."}
    )


@dataclass
class BootstrapConfig(WeakToStrongConfig):
    r"""
    The arguments of [`BootstrapTrainer`], the same for all links: the fields of [`WeakToStrongConfig`], and
    `hard_labels`.

    Args:
        hard_labels (`bool`, *optional*, defaults to `False`):
            Whether to train the next link on the more probable class of each row instead of the probabilities.

    Raises:
        ValueError: A value is outside its range, or `enable_jit_checkpoint` is set, which ends a training run
            as if it were finished. The loss is `learned_supervisors`, which needs several supervisors.
    """

    hard_labels: bool = field(
        default=False,
        metadata={
            "help": "Train each later model of the chain on the more probable class of a row instead of the "
            "probabilities."
        },
    )

    def __post_init__(self):
        super().__post_init__()
        if self.enable_jit_checkpoint:
            raise ValueError(
                "enable_jit_checkpoint: got True, expected False, because an interrupted link of the chain "
                "would count as trained. Set save_steps, and resume with train(resume_from_checkpoint=True)."
            )
        if self.loss_type == "learned_supervisors":
            raise ValueError(
                "loss_type: got 'learned_supervisors' for a chain, expected another loss, because each model has one "
                "supervisor. Set another loss_type."
            )


@dataclass
class RewardPairConfig(LossArguments, RewardConfig):
    r"""
    The arguments of [`RewardPairTrainer`]: the fields of [`~trl.RewardConfig`] and [`LossArguments`]. Class 1 of a
    pair means that the chosen response is better. For `aux_prior`, the two responses of each pair are in an order that
    does not depend on the preference. The natural share is therefore 0.5.

    `model_init_kwargs` are keyword arguments of [`load_student`]. As in [`~trl.RewardConfig`],
    `gradient_checkpointing` is on by default. `bf16` is on by default on devices that compute in bfloat16.
    """

    _argument_group_name = "training (every RewardConfig field, and the weak-to-strong losses)"

    def __post_init__(self):
        super().__post_init__()
        if getattr(self, "train_sampling_strategy", None) == "group_by_length":
            raise ValueError(
                "train_sampling_strategy: got 'group_by_length', which does not work for pairs, because they have two "
                "lengths. Set max_tokens_per_micro_batch, which sorts the pairs of each batch by length."
            )


@dataclass
class CompletionConfig(_OwnDefaults, SFTConfig):
    r"""
    The arguments of [`CompletionTrainer`]: the fields of [`~trl.SFTConfig`], and the arguments below.

    Args:
        max_new_tokens (`int`, *optional*, defaults to `12`):
            Longest completion in tokens, with its end-of-text token. Longer completions are truncated.
        disable_dropout (`bool`, *optional*, defaults to `True`): Whether to set every dropout of the model to 0.

    These defaults differ from [`~trl.SFTConfig`]: `completion_only_loss=True`, `ddp_find_unused_parameters=False`,
    `hub_strategy="end"` (one push, after the last step), and `bf16=False` on a CPU. Rows of more than `max_length`
    tokens are not truncated. [`CompletionTrainer`] leaves them out of training, and raises an error for them in
    evaluation.

    Raises:
        ValueError: A value is outside its range. `packing`, `truncation_mode`, a token or a template is set.
    """

    _argument_group_name = "training (every SFTConfig field)"

    max_new_tokens: int = field(
        default=12,
        metadata={
            "help": "Maximum length of a completion in tokens, with its end-of-text token. Longer completions are "
            "truncated. The default is enough for a chess move."
        },
    )
    disable_dropout: bool = field(
        default=True, metadata={"help": "Set every dropout probability of the model to 0, as in the published code."}
    )
    completion_only_loss: bool | None = field(
        default=True, metadata={"help": "Compute the loss on completions only, not on prompts."}
    )

    def __post_init__(self):
        if self.truncation_mode != "keep_start":
            raise ValueError(
                f"truncation_mode: got {self.truncation_mode!r}, expected the default 'keep_start'. Rows are not "
                "truncated: training rows longer than max_length are left out. Leave truncation_mode out, and shorten "
                "the prompts instead."
            )
        super().__post_init__()
        for name in ("max_length", "max_new_tokens"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name}: got {value}, expected a positive number of tokens. Set it to 1 or more.")
        if self.packing:
            raise ValueError(
                "packing: got True, expected False, because completions are scored row by row. Set packing=False."
            )


AnyConfig = WeakToStrongConfig | RewardPairConfig | CompletionConfig  # the configurations of the trainers


@dataclass
class StudentConfig(ModelConfig):
    """
    The adapters and precision of students: the fields of [`~trl.ModelConfig`], and `head_init`.

    These defaults differ from `ModelConfig`:

    - `dtype=None`: bfloat16 on devices that compute in it, else float32.
    - `lora_dropout=0.0`: no dropout, as in the published code.
    - `use_peft=True`, `lora_task_type="SEQ_CLS"`, `lora_target_modules=["all-linear"]`, `use_bnb_nested_quant=True`.

    The option `--student_model` names the model itself.
    """

    _argument_group_name = "student: adapters, precision, head"

    dtype: str | None = field(
        default=None,
        metadata={
            "help": "Data type of the frozen weights. Unset: bfloat16 on devices that compute in it, and float32 on "
            "CPUs. A student without adapters always has float32 weights.",
            "choices": ["auto", "bfloat16", "float16", "float32"],
        },
    )
    use_peft: bool = field(
        default=True, metadata={"help": "Train LoRA adapters and the head. False: train all weights."}
    )
    lora_r: int = field(default=16, metadata={"help": "Rank of the LoRA adapters. The default is the default of TRL."})
    lora_alpha: int = field(
        default=32,
        metadata={"help": "Scale of the LoRA adapters, whose output is multiplied by lora_alpha / lora_r (TRL: 32)."},
    )
    lora_dropout: float = field(
        default=0.0,
        metadata={
            "help": "Dropout probability of the LoRA adapters. The default is 0, as in the published code. Other "
            "values require --disable_dropout false."
        },
    )
    lora_target_modules: list[str] | None = field(
        default_factory=lambda: ["all-linear"],
        metadata={
            "help": "Names of the modules that get LoRA adapters. `all-linear`: all linear layers except the output "
            "layer."
        },
    )
    lora_task_type: str = field(
        default="SEQ_CLS",
        metadata={"help": "Task type of the PEFT configuration. `SEQ_CLS`: sequence classification."},
    )
    use_bnb_nested_quant: bool = field(
        default=True,
        metadata={"help": "Also quantize the quantization constants of 4-bit weights, which saves memory."},
    )
    head_init: str = field(
        default="normal",
        metadata={
            "help": "Initial weights of the head. `normal`: random, with the initializer_range of the model. `zeros`: "
            "as in the published code. `unembedding`: the unembedding rows of the tokens 0 and 1 (paper). `answers`: "
            "the unembedding rows of the two answer words of the task.",
            "choices": list(HEAD_INITS),
        },
    )

    def __post_init__(self):
        super().__post_init__()
        if self.model_name_or_path is not None:
            raise ValueError(
                f"Got --model_name_or_path {self.model_name_or_path}, expected --student_model with this value. "
                "Rename the option."
            )
        if vars(self).get("trust_remote_code"):  # a field of ModelConfig in TRL 1.0, and not in TRL 1.16
            raise ValueError(
                "Got --trust_remote_code true, expected false, because experiments run no code of model repositories. "
                "Remove it. Models that transformers supports do not need it."
            )
        if (self.load_in_4bit or self.load_in_8bit) and not self.use_peft:
            raise ValueError(
                "Got a quantized student without adapters (--use_peft false), expected adapters. Set --use_peft true."
            )
        if self.load_in_4bit and self.dtype == "auto":
            raise ValueError(
                "dtype: got 'auto' with 4-bit weights, which compute in dtype, expected bfloat16, float16 or float32. "
                "Set one of them, or leave dtype out."
            )
        if self.head_init not in HEAD_INITS:
            raise ValueError(
                f"head_init: got {self.head_init!r}, expected one of {', '.join(HEAD_INITS)}."
                + did_you_mean(self.head_init, HEAD_INITS)
            )

    def resolved(self, use_cpu: bool) -> "StudentConfig":
        """Returns the configuration with the `dtype` for the device of a training run."""
        if self.dtype is not None:
            if self.use_peft and self.dtype == "bfloat16" and use_cpu:
                warn_of_slow_bfloat16()
            return self
        # Without adapters, all weights are float32 and dtype is not used. The cache keys of results have bfloat16.
        is_bfloat16 = not self.use_peft or computes_in_bfloat16(use_cpu)
        return replace(self, dtype="bfloat16" if is_bfloat16 else "float32")
