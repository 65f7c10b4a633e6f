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
from .losses import LOSS_ARGUMENTS, LOSS_TYPES

__all__ = [
    "HEAD_INITS",
    "METHODS",
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
        """[`~transformers.TrainingArguments`] after their `__post_init__`."""

        output_dir: str

else:
    # Type checkers see the fields of the configuration that a class is mixed into. Python finds them on that one.
    TrainerArguments = object

# A method is how a student learns from the weak labels; "naive" is the paper's word for plain finetuning on them.
METHODS = {"naive": "xent", **{name: name for name in LOSS_TYPES if name != "xent"}}

AUX_STARTS = ("first_step", "agreement")

HEAD_INITS = ("normal", "zeros", "unembedding", "answers")


def hardware() -> str:
    """Returns the devices of this run, `2 x NVIDIA H100 80GB HBM3` or `CPU`, without the name of the machine."""
    state = PartialState()
    name = torch.cuda.get_device_name(state.device) if state.device.type == "cuda" else state.device.type.upper()
    return name if state.num_processes == 1 else f"{state.num_processes} x {name}"


def computes_in_bfloat16(use_cpu: bool = False) -> bool:
    """
    Returns whether the device of a training computes in bfloat16. The answer for every CPU is no, so that all CPUs
    give the same numbers; it is also no for CUDA devices that emulate bfloat16 (before Ampere).
    """
    if use_cpu or (torch.cuda.is_available() and not torch.cuda.is_bf16_supported(including_emulation=False)):
        return False
    return is_torch_bf16_gpu_available() or is_torch_xla_available()


def warn_of_slow_bfloat16() -> None:
    """
    Warns, once per process, of bfloat16 on a CPU without instructions for it. For one with AVX-512 torch has kernels
    that are as fast as those of float32, or faster. An older torch does not know the instructions: then no warning.
    """
    capabilities = cpu_capabilities()
    if capabilities and not any(capabilities.get(name, False) for name in ("avx512_bw", "amx_bf16", "bf16")):
        logger.warning_once(
            "Got bfloat16 on a CPU without instructions for it, where it is some forty times slower than float32. Set "
            '--dtype float32 --bf16 false (in Python: dtype="float32", bf16=False).'
        )


@dataclass
class _OwnDefaults(TrainerArguments):
    """
    The defaults of all trainers that differ from [`~transformers.TrainingArguments`].

    Where `bf16` is left at TRL's default, `None`, it is true if the device computes in bfloat16, and false elsewhere.
    """

    ddp_find_unused_parameters: bool | None = field(
        default=False, metadata={"help": "LoRA leaves no parameter unused, and looking for them costs time."}
    )
    hub_strategy: str = field(default="end", metadata={"help": "When to upload: `end` uploads once, after training."})

    def __post_init__(self):
        # Newer transformers warn of the old name, which older ones and TRL's defaults have.
        if getattr(self, "activation_checkpointing", False) is None:
            self.activation_checkpointing = self.gradient_checkpointing
        if self.bf16 is None and not self.fp16 and not computes_in_bfloat16(self.use_cpu):
            logger.warning_once("bf16 is not set: training in float32, because there is no GPU with bfloat16 to use")
            self.bf16 = False
        has_device = is_torch_bf16_gpu_available() or is_torch_xla_available()  # emulation included
        if (self.bf16 or self.bf16_full_eval) and not self.use_cpu and not has_device:
            name = "bf16" if self.bf16 else "bf16_full_eval"
            raise ValueError(
                f"{name}: got True on a machine without a GPU that computes in bfloat16. To train in float32 on the "
                f"CPU, set --use_cpu true --{name} false (in Python: use_cpu=True, {name}=False)."
            )
        if (self.bf16 or self.bf16_full_eval) and self.use_cpu:
            warn_of_slow_bfloat16()
        super().__post_init__()
        strategy = HubStrategy(self.hub_strategy)
        if self.push_to_hub and strategy != HubStrategy.END:
            raise ValueError(
                f"hub_strategy: got {strategy.value!r}, which uploads checkpoints as they are, with training_args.bin "
                "and its paths in them, expected 'end': push_to_hub() uploads the student and its card."
            )


@dataclass
class LossArguments(_OwnDefaults):
    r"""
    The arguments of the losses on soft labels, mixed into the configurations of the trainers.

    Args:
        loss_type (`str`, *optional*, defaults to `"xent"`):
            Loss on the weak labels, one of `w2s_hf.losses.LOSS_TYPES`. `"confidence"` is the paper's auxiliary
            confidence loss (appendix A.4); `"openai"` is the same loss under the schedule of the published code
            (openai/weak-to-strong, loss.py).
        aux_coef (`float`, *optional*, defaults to `0.5`):
            Final weight in [0, 1] of the auxiliary term of `confidence`, `openai` and `entropy`. The paper uses 0.75
            for its largest students and 0.5 for all others.
        aux_warmup_ratio (`float`, *optional*):
            Share of the optimizer steps over which that weight rises from 0. Defaults to 0.2 (paper), and to 0.1 for
            `openai` (published code).
        aux_start (`str`, *optional*, defaults to `"first_step"`):
            When that weight begins to rise. `"agreement"` keeps it at 0 until the student agrees with its weak labels
            beyond chance: by three standard deviations, over the latest half of the steps, at least 128 rows and at
            most one epoch. Rows are predicted before the update of their step, so that in the first epoch the student
            has not seen them. With fewer than 128 training rows the weight stays 0, as in `"xent"`.
        aux_prior (`float`, *optional*):
            Share of each optimizer step's rows that `confidence` and `openai` harden to class 1. Defaults to the mean
            weak label of those rows (paper, footnote 7); 0.5 is the paper's rule for balanced data.
        window_radius (`float`, *optional*, defaults to `0.15`):
            `window` trains on rows where the student's larger probability is below 0.5 + radius.
        product_alpha (`float`, *optional*, defaults to `1.0`):
            Exponent of the weak label in the target of `product`.
        product_beta (`float`, *optional*, defaults to `1.0`):
            Exponent of the student's own prediction in the target of `product`.
        adaptive_temperature (`float`, *optional*, defaults to `1.0`):
            Temperature of the row weights of `adaptive_confidence`.
        max_tokens_per_micro_batch (`int`, *optional*):
            Cut every batch, sorted by length, into micro-batches of at most this many padded tokens. The gradient is
            that of the whole batch, the memory that of one micro-batch. `None` never cuts.

    Defaults that differ from `TrainingArguments`: `ddp_find_unused_parameters=False` (a LoRA student uses all its
    parameters), `hub_strategy="end"` (one upload, after the last step).

    Raises:
        ValueError: a value is outside its range, or `hub_strategy` another than `"end"` with `push_to_hub`.
    """

    loss_type: str = field(
        default="xent",
        metadata={"help": f"Loss on the weak labels: {', '.join(LOSS_TYPES)}. Recipes set it by --methods."},
    )
    aux_coef: float = field(default=0.5, metadata={"help": "Final weight in [0, 1] of the auxiliary confidence term."})
    aux_warmup_ratio: float | None = field(
        default=None,
        metadata={"help": "Share of optimizer steps in which that weight rises from 0 (unset: 0.2, openai 0.1)."},
    )
    aux_start: str = field(
        default="first_step",
        metadata={
            "help": "When that weight begins to rise: `first_step` (paper), or `agreement`, once the student agrees "
            "with the weak labels beyond chance. In a training of few steps the student has nothing to be confident "
            "of before.",
            "choices": list(AUX_STARTS),
        },
    )
    aux_prior: float | None = field(
        default=None, metadata={"help": "Share of rows hardened to class 1 (unset: the mean weak label of the step)."}
    )
    window_radius: float = field(
        default=0.15, metadata={"help": "`window` trains where the student's confidence is below 0.5 + radius."}
    )
    product_alpha: float = field(default=1.0, metadata={"help": "Exponent of the weak label in the product target."})
    product_beta: float = field(default=1.0, metadata={"help": "Exponent of the prediction in the product target."})
    adaptive_temperature: float = field(default=1.0, metadata={"help": "Temperature of adaptive_confidence."})
    max_tokens_per_micro_batch: int | None = field(
        default=None,
        metadata={"help": "Cut each batch into micro-batches of at most this many padded tokens (same gradient)."},
    )

    def __post_init__(self):
        super().__post_init__()
        if self.loss_type not in LOSS_TYPES:
            raise ValueError(
                f"loss_type: got {self.loss_type!r}, expected one of {', '.join(LOSS_TYPES)}."
                + did_you_mean(self.loss_type, LOSS_TYPES)
            )
        if self.label_smoothing_factor:
            raise ValueError(
                f"label_smoothing_factor: got {self.label_smoothing_factor}, which no loss here reads. Labels may be "
                "probabilities: smooth them where they are made."
            )
        if self.aux_start not in AUX_STARTS:
            raise ValueError(f"aux_start: got {self.aux_start!r}, expected {' or '.join(map(repr, AUX_STARTS))}.")
        for name in ("aux_coef", "aux_warmup_ratio", "aux_prior"):
            value = getattr(self, name)
            if value is not None and not 0 <= value <= 1:
                raise ValueError(f"{name}: got {value}, expected a share between 0 and 1.")
        if not 0 < self.window_radius <= 0.5:
            raise ValueError(f"window_radius: got {self.window_radius}, expected a value in (0, 0.5].")
        if self.adaptive_temperature <= 0:
            raise ValueError(f"adaptive_temperature: got {self.adaptive_temperature}, expected a positive number.")
        for name in ("max_length", "max_tokens_per_micro_batch"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(
                    f"{name}: got {value}, expected a positive number of tokens, or nothing for no limit."
                )

    @property
    def has_auxiliary_term(self) -> bool:
        """True if the loss has a term whose weight rises from 0 to `aux_coef`."""
        return "aux_coef" in LOSS_ARGUMENTS[self.loss_type]

    @property
    def resolved_aux_warmup_ratio(self) -> float:
        """`aux_warmup_ratio`, or the default of this loss."""
        return self._warmup_ratio_of(self.loss_type)

    def _warmup_ratio_of(self, loss_type: str) -> float:
        if self.aux_warmup_ratio is not None:
            return self.aux_warmup_ratio
        return 0.1 if loss_type == "openai" else 0.2

    def loss_settings(self, loss_type: str) -> dict[str, str | float | None]:
        """A loss, and the values that it reads of these arguments."""
        settings = {"loss_type": loss_type} | {name: getattr(self, name) for name in LOSS_ARGUMENTS[loss_type]}
        if "aux_warmup_ratio" in settings:
            settings["aux_warmup_ratio"] = self._warmup_ratio_of(loss_type)
        if settings.get("aux_start") == "first_step":
            del settings["aux_start"]  # as in results from before there was a choice
        return settings


@dataclass
class WeakToStrongConfig(LossArguments, TrainingArguments):
    r"""
    Arguments of [`WeakToStrongTrainer`]: those of [`~transformers.TrainingArguments`], of [`LossArguments`], and the
    ones below. `loss_type="xent"` with integer labels is the loss of [`~transformers.Trainer`].

    Args:
        max_length (`int`, *optional*, defaults to `512`):
            Longest row in tokens. Longer texts are truncated when the trainer tokenizes a text column itself, and
            counted in a warning; rows that come as `input_ids` are used as they are.
        dataset_text_field (`str`, *optional*, defaults to `"text"`):
            Column to tokenize where a dataset has no `input_ids`.
        disable_dropout (`bool`, *optional*, defaults to `True`):
            Set every dropout of the model to 0. The published code trains without dropout, and the threshold of the
            confidence loss is only the same for every cut into micro-batches without it.
        model_init_kwargs (`dict`, *optional*):
            Keyword arguments of [`load_student`] when the trainer is given a model name.
    """

    _VALID_DICT_FIELDS = [*TrainingArguments._VALID_DICT_FIELDS, "model_init_kwargs"]
    _argument_group_name = "training (every TrainingArguments field, and the weak-to-strong losses)"

    max_length: int | None = field(default=512, metadata={"help": "Longest row in tokens."})
    dataset_text_field: str = field(default="text", metadata={"help": "Column to tokenize if there is no input_ids."})
    disable_dropout: bool = field(default=True, metadata={"help": "Set every dropout of the model to 0."})
    model_init_kwargs: dict | str | None = field(
        default=None, metadata={"help": "Keyword arguments of load_student when the model is given by name."}
    )


@dataclass
class BootstrapConfig(WeakToStrongConfig):
    r"""
    Arguments of [`BootstrapTrainer`], the same for all links: those of [`WeakToStrongConfig`], and the one below.

    Args:
        hard_labels (`bool`, *optional*, defaults to `False`):
            Teach the next link the likelier class of each row in place of the probabilities.

    Raises:
        ValueError: a value is outside its range; or `enable_jit_checkpoint`, which ends a training as if it were
            finished.
    """

    hard_labels: bool = field(
        default=False, metadata={"help": "Teach the next link the likelier class instead of probabilities."}
    )

    def __post_init__(self):
        super().__post_init__()
        if self.enable_jit_checkpoint:
            raise ValueError(
                "enable_jit_checkpoint: got True, which ends the training of a link as if it were finished; set "
                "save_steps, and go on with train(resume_from_checkpoint=True)."
            )


@dataclass
class RewardPairConfig(LossArguments, RewardConfig):
    r"""
    Arguments of [`RewardPairTrainer`]: those of [`~trl.RewardConfig`] and of [`LossArguments`], where class 1 of a
    pair means that the chosen response is the better one. (For `aux_prior` each pair's sides are taken in an order of
    its own, which has nothing to do with the preference, so that one half is the natural share.)

    `model_init_kwargs` are keyword arguments of [`load_student`]. As in [`~trl.RewardConfig`],
    `gradient_checkpointing` is on by default, and so is `bf16` where the device computes in bfloat16.
    """

    _argument_group_name = "training (every RewardConfig field, and the weak-to-strong losses)"

    def __post_init__(self):
        super().__post_init__()
        if getattr(self, "train_sampling_strategy", None) == "group_by_length":
            raise ValueError(
                "train_sampling_strategy: got 'group_by_length', and a pair has two lengths. Set "
                "max_tokens_per_micro_batch, which sorts the pairs of each batch by length."
            )


@dataclass
class CompletionConfig(_OwnDefaults, SFTConfig):
    r"""
    Arguments of [`CompletionTrainer`]: those of [`~trl.SFTConfig`], and the ones below.

    Args:
        max_new_tokens (`int`, *optional*, defaults to `12`):
            Where a completion is cut, its end-of-text token counted.
        disable_dropout (`bool`, *optional*, defaults to `True`): Set every dropout of the model to 0.

    Defaults that differ from [`~trl.SFTConfig`]: `completion_only_loss=True`, `ddp_find_unused_parameters=False`,
    `hub_strategy="end"` (one upload, after the last step), and `bf16=False` on a CPU. Rows of more than `max_length`
    tokens are not truncated: [`CompletionTrainer`] leaves them out of the training and refuses them in evaluation.

    Raises:
        ValueError: a value is outside its range, or rows would be packed or truncated from the left.
    """

    _argument_group_name = "training (every SFTConfig field)"

    max_new_tokens: int = field(
        default=12, metadata={"help": "Tokens after which a completion is cut, its end-of-text token counted."}
    )
    disable_dropout: bool = field(default=True, metadata={"help": "Set every dropout of the model to 0."})
    completion_only_loss: bool | None = field(default=True, metadata={"help": "The prompt is no part of the loss."})

    def __post_init__(self):
        if self.truncation_mode != "keep_start":
            raise ValueError(
                f"truncation_mode: got {self.truncation_mode!r}, and no row is truncated: training rows longer than "
                "max_length are left out. Remove truncation_mode, and shorten the prompts of the dataset instead."
            )
        super().__post_init__()
        for name in ("max_length", "max_new_tokens"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name}: got {value}, expected a positive number of tokens.")
        if self.packing:
            raise ValueError("packing: got True, and completions are scored row by row; leave it false.")


AnyConfig = WeakToStrongConfig | RewardPairConfig | CompletionConfig  # of a trainer


@dataclass
class StudentConfig(ModelConfig):
    """
    The student's adapter and precision: the fields of [`~trl.ModelConfig`] that a student uses, and `head_init`.

    Defaults that differ from `ModelConfig`: `dtype=None` (bfloat16 on a device that computes in it, else float32),
    `use_peft=True`, `lora_task_type="SEQ_CLS"`, `lora_target_modules=["all-linear"]`, `lora_dropout=0.0` (no dropout,
    as in the published code) and `use_bnb_nested_quant=True`. The model itself is named by `--student_model`.
    """

    _argument_group_name = "student (adapter, precision, head)"

    dtype: str | None = field(
        default=None,
        metadata={
            "help": "Weights of the frozen base (unset: bfloat16 on a device that computes in it, float32 on every "
            "CPU); a student without adapters always trains float32 weights.",
            "choices": ["auto", "bfloat16", "float16", "float32"],
        },
    )
    use_peft: bool = field(default=True, metadata={"help": "Train LoRA adapters and the head; false finetunes all."})
    lora_dropout: float = field(default=0.0, metadata={"help": "LoRA dropout."})
    lora_target_modules: list[str] | None = field(
        default_factory=lambda: ["all-linear"], metadata={"help": "LoRA target modules."}
    )
    lora_task_type: str = field(default="SEQ_CLS", metadata={"help": "PEFT task type."})
    use_bnb_nested_quant: bool = field(default=True, metadata={"help": "Quantize the quantization constants too."})
    head_init: str = field(
        default="normal",
        metadata={
            "help": "First weights of the head: `normal` (the model's initializer_range), `zeros` (published code), "
            "`unembedding` (paper: the unembedding rows of the tokens 0 and 1), `answers` (those of the task's two "
            "answer words).",
            "choices": list(HEAD_INITS),
        },
    )

    def __post_init__(self):
        super().__post_init__()
        if self.model_name_or_path is not None:
            raise ValueError(
                f"Got --model_name_or_path {self.model_name_or_path}; name the student by --student_model."
            )
        if (self.load_in_4bit or self.load_in_8bit) and not self.use_peft:
            raise ValueError("Got a quantized student without adapters (--use_peft false): set --use_peft true.")
        if self.load_in_4bit and self.dtype == "auto":
            raise ValueError(
                "dtype: got 'auto' with 4-bit weights, which are computed in dtype, expected bfloat16, float16 or "
                "float32. Set one, or leave dtype out."
            )
        if self.head_init not in HEAD_INITS:
            raise ValueError(
                f"head_init: got {self.head_init!r}, expected one of {', '.join(HEAD_INITS)}."
                + did_you_mean(self.head_init, HEAD_INITS)
            )

    def resolved(self, use_cpu: bool) -> "StudentConfig":
        """Returns the configuration with the `dtype` of a training, on the CPU or on the machine's best device."""
        if self.dtype is not None:
            if self.use_peft and self.dtype == "bfloat16" and use_cpu:
                warn_of_slow_bfloat16()
            return self
        # Without adapters all weights are float32, and nothing reads this: cached stages have bfloat16 in their keys.
        is_bfloat16 = not self.use_peft or computes_in_bfloat16(use_cpu)
        return replace(self, dtype="bfloat16" if is_bfloat16 else "float32")
