"""Estimates the memory of a student from its configuration alone, and the largest micro-batch that fits on a GPU.

    w2s memory Qwen/Qwen-72B --gpus 1x80

Only config.json is downloaded. The models of the published code need no download. The forward and backward pass
of a training step run on tensors without data. They use the same classes of transformers and PEFT as a real step. The
size of each tensor counts as long as the tensor exists.
"""

import copy
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields
from functools import cache
from pathlib import Path

import torch
from peft import LoraConfig, PeftConfig
from transformers import PretrainedConfig

from ..cards.markdown import markdown_table
from ..modeling import load_config
from .seed_models import SEED_MODELS
from .shapes import Shapes

__all__ = [
    "OPTIMIZERS",
    "MemoryEstimate",
    "NoEstimateError",
    "StudentMemory",
    "config_of",
    "estimate_memory",
    "gib",
    "memory_table",
    "usable_bytes",
    "with_layers",
]

GIB = 2**30

# The values are bytes of optimizer state per trained weight. The keys are values of TrainingArguments.optim. 8-bit
# states have one constant per 256 values.
OPTIMIZERS = {
    "adamw_torch": 8, "adamw_torch_fused": 8, "adamw_8bit": 2 + 8 / 256, "adamw_bnb_8bit": 2 + 8 / 256,
    "paged_adamw_8bit": 2 + 8 / 256, "paged_adamw_32bit": 8, "sgd": 0,
}  # fmt: skip


class NoEstimateError(ValueError):
    """The error for a model whose passes cannot run on tensors without data. The message gives the reason."""


@dataclass(frozen=True)
class MemoryEstimate:
    """
    The memory of a training step, in bytes on each GPU.

    The sum estimates the peak that PyTorch's allocator reports. The GPU driver reports more, because of CUDA contexts
    and fragmentation, see [`usable_bytes`].

    Args:
        weights (`int`): Frozen weights in their precision, and constants of quantization.
        trained (`int`): Trained weights in float32: adapters and head, or all weights.
        gradients (`int`): Gradients of the trained weights.
        optimizer (`int`): State of the optimizer.
        activations (`int`): Peak of all other tensors in the forward and backward pass of a micro-batch.
        prediction (`int`): Peak of all other tensors in the prediction of a batch, without gradients.
        n_rows (`int`): Number of rows of the micro-batch.
    """

    weights: int
    trained: int
    gradients: int
    optimizer: int
    activations: int
    prediction: int
    n_rows: int

    @property
    def resident(self) -> int:
        """The bytes in use between two steps."""
        return self.weights + self.trained + self.optimizer

    @property
    def training_peak(self) -> int:
        """The peak of a training step, in bytes."""
        return self.resident + self.gradients + self.activations

    @property
    def peak(self) -> int:
        """The peak of a training step or of prediction, whichever is larger, in bytes."""
        return max(self.training_peak, self.resident + self.prediction)


def usable_bytes(total: int) -> int:
    """
    Returns the bytes of a GPU that tensors can use. It reserves 5 % of the `total` bytes for fragmentation, and 1 GiB
    for CUDA and its libraries.
    """
    return max(0, int(0.95 * total) - GIB)


class StudentMemory:
    """
    Estimates the memory of training a model, for any batch size, from its configuration alone.

    Args:
        model (`str` or [`~transformers.PretrainedConfig`]): Hub id, local directory, or configuration.
        task_type (`str`, *optional*, defaults to `"SEQ_CLS"`): `"SEQ_CLS"`, `"REWARD"` or `"CAUSAL_LM"`.
        load_in_4bit (`bool`, *optional*, defaults to `False`): As in [`load_student`].
        double_quant (`bool`, *optional*, defaults to `True`): Whether the constants of nf4 are quantized, too.
        dtype (`str`, *optional*, defaults to `"bfloat16"`): The data type of a frozen base model.
        peft_config ([`~peft.LoraConfig`], *optional*): Adapters. Without them, all weights are trained, in float32.
        gradient_checkpointing (`bool`, *optional*, defaults to `False`): As in [`~transformers.TrainingArguments`].
        bf16 (`bool`, *optional*, defaults to `True`): Whether autocast to bfloat16 or float16 is on.
        attn_implementation (`str`, *optional*): As in `from_pretrained`.
        optim (`str`, *optional*, defaults to `"adamw_torch"`): As in [`~transformers.TrainingArguments`].
        n_gpus (`int`, *optional*, defaults to `1`): Number of GPUs, each with one process.
        sharded (`bool`, *optional*, defaults to `False`):
            Whether weights, gradients and optimizer are sharded over the GPUs (FSDP, ZeRO-3). Each layer is then
            gathered together with the next layer while it computes. Otherwise each GPU has a full copy.
        revision (`str`, *optional*): The revision of the model on the Hub.
        traced_layers (`tuple[int]`, *optional*, defaults to `(2, 3)`):
            Numbers of layers for which the forward and backward pass run on tensors without data. The values for all
            layers are extrapolated linearly. This is exact if all layers are equal, but not if only some layers have
            experts or another kind of attention.

    Raises:
        ValueError: The size of the optimizer's state is not known, or a 4-bit model has no adapters or is sharded.
        NoEstimateError: The model cannot run on tensors without data, for example if it has no
            `num_hidden_layers`.
    """

    def __init__(
        self,
        model: str | PretrainedConfig,
        *,
        task_type: str = "SEQ_CLS",
        load_in_4bit: bool = False,
        double_quant: bool = True,
        dtype: str = "bfloat16",
        peft_config: PeftConfig | None = None,
        gradient_checkpointing: bool = False,
        bf16: bool = True,
        attn_implementation: str | None = None,
        optim: str = "adamw_torch",
        n_gpus: int = 1,
        sharded: bool = False,
        revision: str | None = None,
        traced_layers: tuple[int, ...] = (2, 3),
    ):
        if optim not in OPTIMIZERS:
            raise ValueError(f"optim: got {optim!r}, expected one of {', '.join(OPTIMIZERS)}. Change optim.")
        if load_in_4bit and (peft_config is None or sharded):
            problem = "no adapters" if peft_config is None else "sharded=True"
            advice = "Pass a peft_config" if peft_config is None else "Set sharded=False"
            raise ValueError(
                f"Got load_in_4bit and {problem}, expected adapters on a quantized base model that is replicated on "
                f"each GPU. {advice}, or load_in_4bit=False."
            )
        config = config_of(model, revision) if isinstance(model, str) else model
        self._optim, self._n_gpus, self._sharded = optim, n_gpus, sharded
        self._autocast = bf16
        self._n_sequences = 2 if task_type == "REWARD" else 1
        self._activations = cache(self._measure)
        with _explained(config):
            self._n_layers = config.get_text_config().num_hidden_layers
            self._shapes = {
                n_layers: Shapes(
                    with_layers(config, n_layers),
                    task_type=task_type,
                    dtype=getattr(torch, dtype),
                    load_in_4bit=load_in_4bit,
                    double_quant=double_quant,
                    peft_config=peft_config,
                    checkpointing=gradient_checkpointing,
                    attn_implementation=attn_implementation,
                )
                for n_layers in sorted({min(n, self._n_layers) for n in traced_layers})
            }
            self._config = config

    def estimate(self, n_rows: int = 1, length: int = 512, n_predicted_rows: int = 1) -> MemoryEstimate:
        """
        Estimates the memory of a training step and of prediction.

        Args:
            n_rows (`int`, *optional*, defaults to `1`): Rows of a micro-batch. For `"REWARD"`, a row is a pair.
            length (`int`, *optional*, defaults to `512`): Tokens of a text, including padding.
            n_predicted_rows (`int`, *optional*, defaults to `1`): Rows of a prediction batch.
        """
        trained = self._share(self._over_layers(lambda shapes: shapes.trained_bytes))
        n_trained = self._over_layers(lambda shapes: shapes.n_trained)
        n_predicted = n_predicted_rows * self._n_sequences
        with _explained(self._config):
            prediction = self._over_layers(lambda s: s.prediction_bytes(n_predicted, length, autocast=self._autocast))
        return MemoryEstimate(
            weights=self._share(self._over_layers(lambda shapes: shapes.frozen_bytes)),
            trained=trained,
            gradients=trained,
            optimizer=self._share(n_trained * OPTIMIZERS[self._optim]),
            activations=self._activations(n_rows, length),
            prediction=prediction + self._gathered,
            n_rows=n_rows,
        )

    def largest_micro_batch(self, capacity: int, length: int = 512, at_most: int = 4096) -> int:
        """
        Returns the number of rows of the largest micro-batch that fits into `capacity` bytes, or 0 if no row fits.
        """
        estimate = self.estimate(1, length)
        free = capacity - estimate.training_peak + estimate.activations
        fits, too_many, guess = 0, at_most + 1, 1
        while too_many - fits > 1:
            activations = self._activations(guess, length)
            if activations <= free:
                fits = guess
            else:
                too_many = guess
            # Activations are almost proportional to the number of rows, which gives the next guess.
            guess = min(max(free * guess // activations, fits + 1), too_many - 1)
        return fits

    def _measure(self, n_rows: int, length: int) -> int:
        n_sequences = n_rows * self._n_sequences
        with _explained(self._config):
            passes = {
                n_layers: shapes.training_bytes(n_sequences, length, autocast=self._autocast)
                for n_layers, shapes in self._shapes.items()
            }
        # Both passes are extrapolated separately, because either pass can have the peak, depending on the number
        # of layers.
        forward, backward = (self._line({n: peaks[i] for n, peaks in passes.items()}) for i in range(2))
        embedding = max(shapes.embedding_gradient for shapes in self._shapes.values())
        return max(forward, backward, embedding) + self._gathered

    @property
    def _gathered(self) -> int:
        """The bytes of the layers that a sharded model gathers at one time."""
        if not self._sharded:
            return 0
        return 2 * self._slope({n: s.frozen_bytes + s.trained_bytes for n, s in self._shapes.items()})

    def _share(self, n_bytes: float) -> int:
        return math.ceil(n_bytes / (self._n_gpus if self._sharded else 1))

    def _over_layers(self, quantity: Callable[[Shapes], int]) -> int:
        return self._line({n_layers: quantity(shapes) for n_layers, shapes in self._shapes.items()})

    def _line(self, values: dict[int, int]) -> int:
        """Extrapolates the values for the traced numbers of layers to all layers."""
        fewest = min(values)
        return values[fewest] + (self._n_layers - fewest) * self._slope(values)

    @staticmethod
    def _slope(values: dict[int, int]) -> int:
        """Returns the increase of the values per layer."""
        fewest, most = min(values), max(values)
        return (values[most] - values[fewest]) // (most - fewest) if most > fewest else 0


@contextmanager
def _explained(config: PretrainedConfig) -> Iterator[None]:
    """
    Converts every failure of an estimate to a [`NoEstimateError`], with the original error as its cause.

    The code of any architecture and any adapter runs on tensors without data, and can fail in many ways. Examples are
    a missing `num_hidden_layers` (AttributeError, or NotImplementedError when it is set) and an unexpected argument
    (TypeError). Other examples are a missing head (ValueError), access to data (RuntimeError) and a module that PEFT
    has wrapped (KeyError). Errors of this package are not hidden, because tests run the estimate for every named model
    family.
    """
    try:
        yield
    except (RuntimeError, ValueError, KeyError, TypeError, AttributeError) as error:
        reason = str(error).splitlines()[0] if str(error) else "no reason given"
        raise NoEstimateError(
            f"Got model type {config.model_type!r} with settings that cannot be estimated ({type(error).__name__}: "
            f"{reason[:200]}), expected a model that runs on tensors without data. Measure its memory in a short run."
        ) from error


def estimate_memory(
    model: str | PretrainedConfig, *, n_rows: int = 1, length: int = 512, n_predicted_rows: int = 1, **kwargs
) -> MemoryEstimate:
    """
    Estimates the memory of a training step from the configuration of a model alone.

    Args:
        model (`str` or [`~transformers.PretrainedConfig`]): Hub id, local directory, or configuration.
        n_rows, length, n_predicted_rows (`int`, *optional*): As in [`StudentMemory.estimate`].
        kwargs: Arguments of [`StudentMemory`], such as `load_in_4bit`, `peft_config`, `gradient_checkpointing`,
            `optim`.

    Example:

    ```python
    lora = LoraConfig(r=16, target_modules="all-linear", task_type="SEQ_CLS")
    estimate = estimate_memory(
        "Qwen/Qwen-72B", load_in_4bit=True, peft_config=lora, n_rows=2, length=512, gradient_checkpointing=True
    )
    estimate.peak <= usable_bytes(80 * 2**30)
    ```
    """
    return StudentMemory(model, **kwargs).estimate(n_rows, length, n_predicted_rows)


def config_of(name_or_path: str, revision: str | None = None) -> PretrainedConfig:
    """
    Loads the configuration of a model. Models of [`w2s_hf.memory.seed_models.SEED_MODELS`] need no network.
    """
    known = SEED_MODELS.get(name_or_path.removeprefix("openai-community/"))
    if known is not None and revision is None and not Path(name_or_path).is_dir():
        return known.config()
    return load_config(name_or_path, revision)


def with_layers(config: PretrainedConfig, n_layers: int) -> PretrainedConfig:
    """Returns a copy of a configuration with another number of layers."""
    config = copy.deepcopy(config)
    text_config = config.get_text_config()
    text_config.num_hidden_layers = n_layers
    if getattr(text_config, "layer_types", None) is not None:
        text_config.layer_types = text_config.layer_types[:n_layers]
    return config


def gib(n_bytes: int) -> str:
    """Formats a number of bytes in GiB, with one decimal."""
    return f"{n_bytes / GIB:.1f}"


def memory_table(
    model: str | PretrainedConfig, *, gpus: tuple[int, int], length: int = 512, lora_r: int = 16, **kwargs
) -> str:
    """
    Returns a Markdown table of the memory per GPU, in GiB, for several ways of training a model.

    Args:
        model (`str` or [`~transformers.PretrainedConfig`]): As in [`StudentMemory`].
        gpus (`tuple[int, int]`): The number of GPUs, and the bytes of one GPU.
        length (`int`, *optional*, defaults to `512`): Tokens of a text, including padding.
        lora_r (`int`, *optional*, defaults to `16`): Rank of the adapters, on all linear layers.
        kwargs: Arguments of [`StudentMemory`].
    """
    n_gpus, total = gpus
    lora = LoraConfig(r=lora_r, target_modules="all-linear", task_type="SEQ_CLS")
    if kwargs.get("task_type") == "CAUSAL_LM":
        lora.task_type = "CAUSAL_LM"
    ways: dict[str, dict] = {
        "LoRA, 4-bit base": {"peft_config": lora, "load_in_4bit": True},
        "LoRA, bfloat16 base": {"peft_config": lora},
        "all weights": {},
    }
    if n_gpus > 1:
        ways |= {f"{name}, sharded": {**ways[name], "sharded": True} for name in list(ways)[1:]}
    lines = []
    for name, way in ways.items():
        student = StudentMemory(model, n_gpus=n_gpus, **way, **kwargs)
        estimate = student.estimate(1, length)
        n_rows = student.largest_micro_batch(usable_bytes(total), length)
        parts = [
            getattr(estimate, part.name) for part in fields(estimate) if part.name not in ("prediction", "n_rows")
        ]
        fits = f"yes, {n_rows} rows" if n_rows else "no"
        lines.append([name, *map(gib, parts), gib(estimate.peak), fits])
    header = [
        "training",
        "weights",
        "trained",
        "gradients",
        "optimizer",
        "activations",
        "peak",
        "fits, largest micro-batch",
    ]
    return markdown_table(header, lines)
