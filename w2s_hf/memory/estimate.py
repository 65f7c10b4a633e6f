"""Estimates the memory of a student from its configuration alone, and the largest micro-batch on a GPU.

    python -m w2s_hf.memory Qwen/Qwen-72B --gpus 1x80

Nothing is downloaded but a config.json, and for the models of the published code not even that. The passes of a
training step run on tensors without data, through the classes of transformers and PEFT that the real step runs
through, and every tensor is counted for as long as it lives.
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

# Bytes of optimizer state a trained weight, by TrainingArguments.optim. 8-bit states have a constant per 256 values.
OPTIMIZERS = {
    "adamw_torch": 8, "adamw_torch_fused": 8, "adamw_8bit": 2 + 8 / 256, "adamw_bnb_8bit": 2 + 8 / 256,
    "paged_adamw_8bit": 2 + 8 / 256, "paged_adamw_32bit": 8, "sgd": 0,
}  # fmt: skip


class NoEstimateError(ValueError):
    """A model whose passes cannot be run without data, and why."""


@dataclass(frozen=True)
class MemoryEstimate:
    """
    Bytes on each GPU. Their sum is what PyTorch's allocator reports as the peak, not what the driver does: contexts
    and fragmentation come on top, see [`usable_bytes`].

    Args:
        weights (`int`): Frozen ones in their precision, and constants of quantization.
        trained (`int`): Adapters and head, or all weights, in float32.
        gradients (`int`): Of these.
        optimizer (`int`): Its state.
        activations (`int`): The most that the passes of a micro-batch take besides, with all that is temporary.
        prediction (`int`): The same for a batch of prediction, when there are no gradients.
        n_rows (`int`): Rows of the micro-batch.
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
        """Bytes between two steps."""
        return self.weights + self.trained + self.optimizer

    @property
    def training_peak(self) -> int:
        """The largest sum in a training step."""
        return self.resident + self.gradients + self.activations

    @property
    def peak(self) -> int:
        """The largest sum: in a training step, or in prediction."""
        return max(self.training_peak, self.resident + self.prediction)


def usable_bytes(total: int) -> int:
    """Returns the memory of a GPU for tensors: without 1 GiB for CUDA and its libraries, and 5 % for fragmentation."""
    return max(0, int(0.95 * total) - GIB)


class StudentMemory:
    """
    Memory of a model in training, from its configuration alone: built once, asked for any size of batch.

    Args:
        model (`str` or [`~transformers.PretrainedConfig`]): Hub id, local directory, or configuration.
        task_type (`str`, *optional*, defaults to `"SEQ_CLS"`): `"SEQ_CLS"`, `"REWARD"` or `"CAUSAL_LM"`.
        load_in_4bit (`bool`, *optional*, defaults to `False`): As in [`load_student`].
        double_quant (`bool`, *optional*, defaults to `True`): Constants of nf4 are quantized, too.
        dtype (`str`, *optional*, defaults to `"bfloat16"`): Of a frozen base.
        peft_config ([`~peft.LoraConfig`], *optional*): Adapters; `None` trains all weights, in float32.
        gradient_checkpointing (`bool`, *optional*, defaults to `False`): As in [`~transformers.TrainingArguments`].
        bf16 (`bool`, *optional*, defaults to `True`): Autocast, to whichever 16 bits.
        attn_implementation (`str`, *optional*): As in `from_pretrained`.
        optim (`str`, *optional*, defaults to `"adamw_torch"`): As in [`~transformers.TrainingArguments`].
        n_gpus (`int`, *optional*, defaults to `1`): Processes.
        sharded (`bool`, *optional*, defaults to `False`):
            Weights, gradients and optimizer are divided among the GPUs (FSDP, ZeRO-3), and each layer is gathered,
            with the next one, for as long as it computes. Otherwise each GPU has all of them.
        revision (`str`, *optional*): On the Hub.
        traced_layers (`tuple[int]`, *optional*, defaults to `(2, 3)`):
            Layers that the passes run through. A model of more is the line through these: exact where layers are
            alike, and not where only some of them have experts, say, or another attention.

    Raises:
        ValueError: an optimizer whose state is not known here, or a 4-bit model without adapters or sharded.
        NoEstimateError: the passes cannot be run without data, such as of models without `num_hidden_layers`.
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
            raise ValueError(f"optim: got {optim!r}, expected one of {', '.join(OPTIMIZERS)}.")
        if load_in_4bit and (peft_config is None or sharded):
            got = "no adapters" if peft_config is None else "sharded=True"
            raise ValueError(
                f"Got load_in_4bit and {got}: a quantized base is not trained, and stays whole on each GPU."
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
        Estimates a training step and prediction.

        Args:
            n_rows (`int`, *optional*, defaults to `1`): Rows (pairs, for `"REWARD"`) of a micro-batch.
            length (`int`, *optional*, defaults to `512`): Tokens of each, padding included.
            n_predicted_rows (`int`, *optional*, defaults to `1`): Rows (or pairs) of a batch of prediction.
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
        """Rows of the largest micro-batch whose step fits into `capacity` bytes; 0 where not one row does."""
        estimate = self.estimate(1, length)
        free = capacity - estimate.training_peak + estimate.activations
        fits, too_many, guess = 0, at_most + 1, 1
        while too_many - fits > 1:
            activations = self._activations(guess, length)
            if activations <= free:
                fits = guess
            else:
                too_many = guess
            # They are all but proportional to rows: the line through the last ones is a good next guess.
            guess = min(max(free * guess // activations, fits + 1), too_many - 1)
        return fits

    def _measure(self, n_rows: int, length: int) -> int:
        n_sequences = n_rows * self._n_sequences
        with _explained(self._config):
            passes = {
                n_layers: shapes.training_bytes(n_sequences, length, autocast=self._autocast)
                for n_layers, shapes in self._shapes.items()
            }
        # Each has a line of its own over the layers: with few of them the one may be higher, with many the other.
        forward, backward = (self._line({n: peaks[i] for n, peaks in passes.items()}) for i in range(2))
        embedding = max(shapes.embedding_gradient for shapes in self._shapes.values())
        return max(forward, backward, embedding) + self._gathered

    @property
    def _gathered(self) -> int:
        """Bytes of the layers that are whole for a while, of a sharded model."""
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
        """The value that one more layer adds."""
        fewest, most = min(values), max(values)
        return (values[most] - values[fewest]) // (most - fewest) if most > fewest else 0


@contextmanager
def _explained(config: PretrainedConfig) -> Iterator[None]:
    """
    Turns every failure of an estimate into a [`NoEstimateError`], with the original error as its cause.

    The code of any architecture and any adapter runs here on tensors without data, and fails in ways that cannot be
    listed: no `num_hidden_layers` to read (AttributeError) or set (NotImplementedError, a RuntimeError), an argument
    that it does not take (TypeError), no head (ValueError), data that it reads (RuntimeError), a module that PEFT has
    wrapped (KeyError). Faults of this package do not hide behind it: tests ask for the estimate of every model family
    that is named.
    """
    try:
        yield
    except (RuntimeError, ValueError, KeyError, TypeError, AttributeError) as error:
        reason = str(error).splitlines()[0] if str(error) else "no reason given"
        raise NoEstimateError(
            f"There is no estimate of memory for {config.model_type!r} with these settings ({type(error).__name__}: "
            f"{reason[:200]})."
        ) from error


def estimate_memory(
    model: str | PretrainedConfig, *, n_rows: int = 1, length: int = 512, n_predicted_rows: int = 1, **kwargs
) -> MemoryEstimate:
    """
    Memory of a training step, from the configuration of a model alone.

    Args:
        model (`str` or [`~transformers.PretrainedConfig`]): Hub id, local directory, or configuration.
        n_rows, length, n_predicted_rows (`int`, *optional*): As in [`StudentMemory.estimate`].
        kwargs: Those of [`StudentMemory`], such as `load_in_4bit`, `peft_config`, `gradient_checkpointing`, `optim`.

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
    """The configuration of a model; of [`w2s_hf.memory.seed_models.SEED_MODELS`] with no network."""
    known = SEED_MODELS.get(name_or_path.removeprefix("openai-community/"))
    if known is not None and revision is None and not Path(name_or_path).is_dir():
        return known.config()
    return load_config(name_or_path, revision)


def with_layers(config: PretrainedConfig, n_layers: int) -> PretrainedConfig:
    """The same model with another number of layers."""
    config = copy.deepcopy(config)
    text_config = config.get_text_config()
    text_config.num_hidden_layers = n_layers
    if getattr(text_config, "layer_types", None) is not None:
        text_config.layer_types = text_config.layer_types[:n_layers]
    return config


def gib(n_bytes: int) -> str:
    """Bytes in GiB."""
    return f"{n_bytes / GIB:.1f}"


def memory_table(
    model: str | PretrainedConfig, *, gpus: tuple[int, int], length: int = 512, lora_r: int = 16, **kwargs
) -> str:
    """
    Returns the memory of each way of training a model, per GPU, as a Markdown table in GiB.

    Args:
        model (`str` or [`~transformers.PretrainedConfig`]): As in [`StudentMemory`].
        gpus (`tuple[int, int]`): How many, and the bytes of one.
        length (`int`, *optional*, defaults to `512`): Tokens of a row.
        lora_r (`int`, *optional*, defaults to `16`): Rank of the adapters, on all linear layers.
        kwargs: As in [`StudentMemory`].
    """
    n_gpus, total = gpus
    lora = LoraConfig(r=lora_r, target_modules="all-linear", task_type="SEQ_CLS")
    if kwargs.get("task_type") == "CAUSAL_LM":
        lora.task_type = "CAUSAL_LM"
    ways: dict[str, dict] = {
        "LoRA on 4 bits": {"peft_config": lora, "load_in_4bit": True},
        "LoRA on bfloat16": {"peft_config": lora},
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
    header = ["", "weights", "trained", "gradients", "optimizer", "activations", "peak", "fits, micro-batch"]
    return markdown_table(header, lines)
