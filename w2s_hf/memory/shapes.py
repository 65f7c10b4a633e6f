"""A student that has only shapes and no weights. It counts the bytes of a forward and backward pass."""

import copy
import math
import weakref
from typing import Any

import bitsandbytes as bnb
import torch
from peft import PeftConfig, PeftModel
from torch import nn
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, PretrainedConfig, PreTrainedModel
from transformers.pytorch_utils import Conv1D

from .._compat import FakeTensorMode, TorchDispatchMode, mark_as_4bit, tensors_of, tree_leaves
from ..modeling import disable_dropout
from ..modeling.adapters import fresh_adapter
from ..modeling.heads import full_precision_head, head_linears

__all__ = ["Shapes", "quantized_bytes"]

_BLOCK = 64  # number of weights that share a constant in nf4 (QLoRA, appendix B)
_NESTED_BLOCK = 256  # number of constants that share a second constant, with double quantization


def quantized_bytes(n_weights: int, double_quant: bool = True) -> int:
    """Returns the bytes of a linear layer's weights in nf4, in the format of bitsandbytes."""
    n_constants = math.ceil(n_weights / _BLOCK)
    if not double_quant:
        return math.ceil(n_weights / 2) + 4 * n_constants + 4 * 16
    nested = 4 * math.ceil(n_constants / _NESTED_BLOCK)
    # The terms are two weights per byte, one byte per constant, and the float32 constants that quantize these
    # constants. The offset and the tables of 256 and 16 values follow.
    return math.ceil(n_weights / 2) + n_constants + nested + 4 + 4 * 256 + 4 * 16


class _Dequantize(torch.autograd.Function):
    """
    The product with a 4-bit matrix. In the forward and backward pass, the matrix exists as a 16-bit matrix for the
    duration of the product.
    """

    @staticmethod
    def forward(ctx, inputs: torch.Tensor, out_features: int) -> torch.Tensor:
        ctx.shape = (out_features, inputs.shape[-1])
        return inputs @ inputs.new_empty(ctx.shape).T

    @staticmethod
    def backward(ctx, gradient: torch.Tensor):
        return gradient @ gradient.new_empty(ctx.shape), None


class _Linear4bit(bnb.nn.Linear4bit):
    """
    A 4-bit layer that PEFT recognizes, with the number of bytes of a real layer. The layer of bitsandbytes does not
    compute on the meta device.
    """

    def __init__(self, in_features: int, out_features: int, bias: bool, dtype: torch.dtype, double_quant: bool):
        super().__init__(in_features, out_features, bias, compute_dtype=dtype, quant_type="nf4", device="meta")
        settings = {name: getattr(self.weight, name) for name in ("compress_statistics", "quant_type")}
        n_bytes = quantized_bytes(in_features * out_features, double_quant)
        packed = torch.empty(n_bytes, 1, dtype=torch.uint8, device="meta")
        self.weight = nn.Parameter(packed, requires_grad=False)
        for name, value in settings.items():
            setattr(self.weight, name, value)
        if self.bias is not None:
            self.bias.data = self.bias.data.to(dtype)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        outputs = _Dequantize.apply(inputs.to(self.compute_dtype), self.out_features)
        if self.bias is not None:
            outputs = outputs + self.bias.to(self.compute_dtype)
        return outputs.to(inputs.dtype)


class _PeakBytes(TorchDispatchMode):
    """Counts the bytes of all tensors created in this context, and their peak."""

    def __init__(self):
        super().__init__()
        self.now = self.peak = 0
        self._known: weakref.WeakSet = weakref.WeakSet()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        outputs = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(outputs):
            if isinstance(tensor, torch.Tensor):
                self._count(tensor.untyped_storage())
        return outputs

    def ignore(self, tensors) -> None:
        """Excludes existing tensors from the count."""
        for tensor in tensors:
            self._known.add(tensor.untyped_storage())

    def _count(self, storage: torch.UntypedStorage) -> None:
        if storage in self._known:
            return
        n = storage.nbytes()
        self._known.add(storage)
        self.now += n
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._free, n)

    def _free(self, n: int) -> None:
        self.now -= n


class Shapes:
    """
    A model without data in its weights. It has the structure of a model from [`load_student`] with [`fresh_adapter`],
    or of a model trained with all its weights.

    Args:
        config ([`~transformers.PretrainedConfig`]): The configuration of the model.
        task_type (`str`): `"SEQ_CLS"`, `"REWARD"` or `"CAUSAL_LM"`.
        dtype (`torch.dtype`): The data type of a frozen base model. Without adapters, it is float32.
        load_in_4bit (`bool`): Whether the base model is quantized to nf4.
        double_quant (`bool`): Whether the constants of nf4 are quantized, too.
        peft_config ([`~peft.LoraConfig`], *optional*): Adapters. Without them, all weights are trained.
        checkpointing (`bool`): Whether activations are recomputed in the backward pass (gradient checkpointing).
        attn_implementation (`str`, *optional*): As in `from_pretrained`.
    """

    def __init__(
        self,
        config: PretrainedConfig,
        *,
        task_type: str,
        dtype: torch.dtype,
        load_in_4bit: bool,
        double_quant: bool,
        peft_config: PeftConfig | None,
        checkpointing: bool,
        attn_implementation: str | None,
    ):
        self.task_type = task_type
        config = copy.deepcopy(config)
        config.num_labels = 1 if task_type == "REWARD" else 2
        config.get_text_config().pad_token_id = 0
        auto_class = AutoModelForCausalLM if task_type == "CAUSAL_LM" else AutoModelForSequenceClassification
        # Flash attention has no kernels for tensors without data. It stores the same activations as SDPA.
        attention = {"attn_implementation": "eager"} if attn_implementation == "eager" else {}
        with torch.device("meta"):
            weights_dtype = dtype if peft_config is not None else torch.float32
            model = auto_class.from_config(config, dtype=weights_dtype, **attention)
            if load_in_4bit:
                _quantize_linears(model, dtype, double_quant)
                mark_as_4bit(model)
            if task_type != "CAUSAL_LM":
                full_precision_head(model)
            if peft_config is not None:
                model = fresh_adapter(model, peft_config)
            disable_dropout(model)
        if checkpointing:
            model.gradient_checkpointing_enable()
            if peft_config is not None:
                model.enable_input_require_grads()
        self._fake = FakeTensorMode()
        with self._fake:
            self._materialize(model)
        self.model: PreTrainedModel | PeftModel = model

    @staticmethod
    def _materialize(model: nn.Module) -> None:
        """
        Replaces tensors of the meta device with fake CPU tensors, because autocast has no effect on the meta device.
        Shared tensors stay shared.
        """
        fakes: dict[int, torch.Tensor] = {}
        for module in model.modules():
            for tensors in tensors_of(module):
                for name, tensor in tensors.items():
                    if tensor is None:
                        continue
                    if id(tensor) not in fakes:
                        fake = torch.empty(tensor.shape, dtype=tensor.dtype)
                        if isinstance(tensor, nn.Parameter):
                            fake = nn.Parameter(fake, requires_grad=tensor.requires_grad)
                        fakes[id(tensor)] = fake
                    tensors[name] = fakes[id(tensor)]

    @property
    def frozen_bytes(self) -> int:
        """The bytes of frozen weights and of buffers."""
        frozen = [p for p in self.model.parameters() if not p.requires_grad]
        return sum(tensor.nbytes for tensor in (*frozen, *self.model.buffers()))

    @property
    def trained_bytes(self) -> int:
        """The bytes of trained weights."""
        return sum(p.nbytes for p in self.model.parameters() if p.requires_grad)

    @property
    def n_trained(self) -> int:
        """The number of trained weights."""
        return sum(p.numel() for p in self.model.parameters() if p.requires_grad)

    def training_bytes(self, n_sequences: int, length: int, *, autocast: bool) -> tuple[int, int]:
        """
        Returns the peak bytes of the forward pass and of the backward pass, without weights, gradients and optimizer.

        Gradients of an earlier micro-batch exist, as in every micro-batch of a step except the first, but are not part
        of the peak. The gradient of the embedding is not counted, because it is computed last, when all other tensors
        are freed. See `embedding_gradient`.
        """
        self.model.train()
        with self._fake:
            for parameter in self.model.parameters():
                if parameter.requires_grad:
                    parameter.grad = torch.empty_like(parameter)
            try:
                return self._pass(n_sequences, length, autocast=autocast, is_training=True)
            finally:
                self.model.zero_grad(set_to_none=True)

    @property
    def embedding_gradient(self) -> int:
        """The bytes of a micro-batch's gradient of the token embedding, or 0 if the embedding is not trained."""
        weight: Any = self.model.get_input_embeddings().weight
        return weight.nbytes if weight.requires_grad else 0

    def prediction_bytes(self, n_sequences: int, length: int, *, autocast: bool) -> int:
        """
        Returns the peak bytes of a forward pass without gradients. Weights are not counted. The cache of a language
        model is counted.
        """
        self.model.eval()
        with self._fake, torch.no_grad():
            return self._pass(n_sequences, length, autocast=autocast, is_training=False)[0]

    def _pass(self, n_sequences: int, length: int, *, autocast: bool, is_training: bool) -> tuple[int, int]:
        embedding: Any = self.model.get_input_embeddings()
        weight = embedding.weight
        # The embedding has only one row here, because `embedding_gradient` counts its gradient.
        embedding.weight = nn.Parameter(torch.empty_like(weight[:1]), requires_grad=weight.requires_grad)
        ids = torch.zeros(n_sequences, length, dtype=torch.long)
        mask = torch.ones(n_sequences, length, dtype=torch.long)
        is_language_model = self.task_type == "CAUSAL_LM"
        # The logits of all positions never exist at the same time. TRL computes them in tiles, and generation needs
        # only the last position.
        kwargs = {"logits_to_keep": 1} if is_language_model else {}
        if hasattr(self.model.config.get_text_config(), "use_cache"):
            kwargs["use_cache"] = is_language_model and not is_training
        tracker = _PeakBytes()
        tracker.ignore([*self.model.parameters(), *self.model.buffers()])
        tracker.ignore(p.grad for p in self.model.parameters() if p.grad is not None)
        try:
            with tracker:
                with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
                    outputs = self.model(input_ids=ids, attention_mask=mask, **kwargs)
                forward, tracker.peak = tracker.peak, tracker.now
                if is_training:
                    outputs.logits.float().logsumexp(dim=-1).mean().backward()
        finally:
            embedding.weight = weight
        return forward, tracker.peak


def _quantize_linears(model: PreTrainedModel, dtype: torch.dtype, double_quant: bool) -> None:
    head = {"lm_head", *head_linears(model)}
    for name, module in list(model.named_modules()):
        if not isinstance(module, nn.Linear | Conv1D) or name in head:
            continue
        n_in, n_out = module.weight.shape if isinstance(module, Conv1D) else module.weight.shape[::-1]
        parent, _, attribute = name.rpartition(".")
        linear = _Linear4bit(n_in, n_out, module.bias is not None, dtype, double_quant)
        setattr(model.get_submodule(parent), attribute, linear)
