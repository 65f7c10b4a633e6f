"""A student of shapes alone, with no weights in it, and the bytes that passes through it take."""

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

_BLOCK = 64  # weights that share a constant, in nf4 (QLoRA, appendix B)
_NESTED_BLOCK = 256  # and constants that share one, with double quantization


def quantized_bytes(n_weights: int, double_quant: bool = True) -> int:
    """Bytes of a linear layer's weights in nf4, as bitsandbytes keeps them."""
    n_constants = math.ceil(n_weights / _BLOCK)
    if not double_quant:
        return math.ceil(n_weights / 2) + 4 * n_constants + 4 * 16
    nested = 4 * math.ceil(n_constants / _NESTED_BLOCK)
    # Two weights a byte; a byte a constant; float32 constants of these; their offset; the tables of 256 and 16 values.
    return math.ceil(n_weights / 2) + n_constants + nested + 4 + 4 * 256 + 4 * 16


class _Dequantize(torch.autograd.Function):
    """The product with a 4-bit matrix: in either direction it is there in 16 bits for as long as the product takes."""

    @staticmethod
    def forward(ctx, inputs: torch.Tensor, out_features: int) -> torch.Tensor:
        ctx.shape = (out_features, inputs.shape[-1])
        return inputs @ inputs.new_empty(ctx.shape).T

    @staticmethod
    def backward(ctx, gradient: torch.Tensor):
        return gradient @ gradient.new_empty(ctx.shape), None


class _Linear4bit(bnb.nn.Linear4bit):
    """The same for PEFT, and for the bytes it takes; on the meta device bitsandbytes itself computes nothing."""

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
    """Counts the bytes of all tensors made under it, and their largest sum."""

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
        """Leaves tensors out that existed before."""
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
    A model as [`load_student`] and [`fresh_adapter`] make it, or with all weights in training, without any weights.

    Args:
        config ([`~transformers.PretrainedConfig`]): Of the model.
        task_type (`str`): `"SEQ_CLS"`, `"REWARD"` or `"CAUSAL_LM"`.
        dtype (`torch.dtype`): Of a frozen base; a model whose weights all train has float32 ones.
        load_in_4bit (`bool`): nf4.
        double_quant (`bool`): The constants of nf4 are quantized, too.
        peft_config ([`~peft.LoraConfig`], *optional*): Adapters; `None` trains all weights.
        checkpointing (`bool`): Activations are computed again in the backward pass.
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
        # Kernels of flash attention are not there for tensors without data; what they keep is what SDPA keeps.
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
        """From the meta device, where autocast does nothing, to fake tensors of the CPU; shared ones stay shared."""
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
        """Bytes of weights that are not trained, and of buffers."""
        frozen = [p for p in self.model.parameters() if not p.requires_grad]
        return sum(tensor.nbytes for tensor in (*frozen, *self.model.buffers()))

    @property
    def trained_bytes(self) -> int:
        """Bytes of trained weights."""
        return sum(p.nbytes for p in self.model.parameters() if p.requires_grad)

    @property
    def n_trained(self) -> int:
        """Trained weights."""
        return sum(p.numel() for p in self.model.parameters() if p.requires_grad)

    def training_bytes(self, n_sequences: int, length: int, *, autocast: bool) -> tuple[int, int]:
        """
        The most that a forward pass and a backward pass take, each, beside weights, gradients and optimizer.

        Gradients of an earlier micro-batch are there, as in all but the first one. That of the embedding is not
        counted, which comes last, when all other tensors are gone: see `embedding_gradient`.
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
        """Bytes of the gradient of one micro-batch for the token embedding, where that is trained."""
        weight: Any = self.model.get_input_embeddings().weight
        return weight.nbytes if weight.requires_grad else 0

    def prediction_bytes(self, n_sequences: int, length: int, *, autocast: bool) -> int:
        """The most that a forward pass without gradients takes beside weights; of a language model with its cache."""
        self.model.eval()
        with self._fake, torch.no_grad():
            return self._pass(n_sequences, length, autocast=autocast, is_training=False)[0]

    def _pass(self, n_sequences: int, length: int, *, autocast: bool, is_training: bool) -> tuple[int, int]:
        embedding: Any = self.model.get_input_embeddings()
        weight = embedding.weight
        # One row: what a gradient of all of them takes is another question.
        embedding.weight = nn.Parameter(torch.empty_like(weight[:1]), requires_grad=weight.requires_grad)
        ids = torch.zeros(n_sequences, length, dtype=torch.long)
        mask = torch.ones(n_sequences, length, dtype=torch.long)
        is_language_model = self.task_type == "CAUSAL_LM"
        # Nobody here makes logits of all positions: TRL goes over them in tiles, and writing needs the last one.
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
