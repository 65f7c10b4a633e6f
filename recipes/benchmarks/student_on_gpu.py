"""Measures speed, FLOP utilization and peak memory of a student's training. Compares the memory with its estimate.

    python recipes/benchmarks/student_on_gpu.py --model Qwen/Qwen-72B --load_in_4bit --max_tokens 8192
    python recipes/benchmarks/student_on_gpu.py --model Qwen/Qwen-7B --max_tokens 16384 --no_checkpointing

Weights are random. They are created from the shapes of the model, layer by layer on the GPU, so nothing is downloaded.
Speed and memory do not depend on the values of the weights. WeakToStrongTrainer runs the optimizer steps. By default,
a step has 32 rows of 512 tokens in micro-batches of `--max_tokens` tokens. The student has LoRA of rank 16 on
all linear layers, and bfloat16 autocast. The script also runs on a CPU (`--layers 2 --width 128` for a small model),
but does not measure memory on it.
"""

import argparse
import json
import math
import tempfile
import time
from pathlib import Path

import bitsandbytes as bnb
import torch
from datasets import Dataset
from peft import LoraConfig, PeftModel
from torch import nn
from transformers import AutoModelForSequenceClassification, BitsAndBytesConfig, PretrainedConfig, TrainerCallback
from transformers.quantizers import AutoHfQuantizer

from w2s_hf import WeakToStrongConfig, WeakToStrongTrainer, fresh_adapter
from w2s_hf.command_line import CommandLine, HelpFormatter
from w2s_hf.config import hardware
from w2s_hf.memory import config_of, estimate_memory, gib, with_layers
from w2s_hf.modeling.heads import HEAD_NAMES, full_precision_head

# The manufacturer states these numbers of dense bfloat16 FLOP per second. The keys are parts of the names of GPUs.
PEAK_FLOPS = {"H200": 989e12, "H100 80GB HBM3": 989e12, "A100": 312e12, "L40S": 362e12, "4090": 165e12}


def random_base(config: PretrainedConfig, device: torch.device, load_in_4bit: bool) -> nn.Module:
    """Returns a classifier with random weights, which are created layer by layer on the device."""
    with torch.device("meta"):
        model = AutoModelForSequenceClassification.from_config(config, dtype=torch.bfloat16)
    if load_in_4bit:
        quantization = BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=torch.bfloat16, llm_int8_skip_modules=list(HEAD_NAMES),
        )  # fmt: skip
        # from_pretrained calls these methods before and after it reads weights.
        quantizer = model.hf_quantizer = AutoHfQuantizer.from_config(quantization, pre_quantized=False)
        quantizer.preprocess_model(model, device_map=None)
        quantizer.postprocess_model(model)
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            value = torch.empty(parameter.shape, dtype=torch.bfloat16, device=device)
            # Weights of norms are 1. Other weights have the initialization of this model family.
            value.fill_(1.0) if parameter.ndim == 1 and name == "weight" else value.normal_(std=0.02)
            if isinstance(module, bnb.nn.Linear4bit) and name == "weight":
                packed = bnb.nn.Params4bit(
                    value, requires_grad=False, quant_type="nf4", compress_statistics=True, module=module
                )
                module.weight = packed.to(device)
            else:
                setattr(module, name, nn.Parameter(value, requires_grad=False))
        if next(module.buffers(recurse=False), None) is not None:
            with device:  # computes rotary embeddings again, because the meta device has no values
                module.__init__(module.config)
    full_precision_head(model)
    return model.eval()


class Clock(TrainerCallback):
    """Measures the seconds of each optimizer step, until the device has finished it."""

    def __init__(self, device: torch.device):
        self.device, self.seconds, self.start = device, [], 0.0

    def _now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()

    def on_step_begin(self, args, state, control, **kwargs):
        self.start = self._now()

    def on_step_end(self, args, state, control, **kwargs):
        self.seconds.append(self._now() - self.start)


def flops_per_token(model: PeftModel, length: int) -> float:
    """
    Returns the FLOP per token that the computation requires. These are products with frozen matrices in both passes,
    products with adapters and their gradients, and the half of attention that is not masked. Recomputed activations do
    not count.
    """
    n_frozen = n_trainable = 0
    for module in model.modules():
        if isinstance(module, nn.Linear):  # includes Linear4bit
            n = module.in_features * module.out_features
            if module.weight.requires_grad:
                n_trainable += n
            else:
                n_frozen += n
    config = model.config
    head_width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    attention = 2 * 2 * config.num_hidden_layers * config.num_attention_heads * head_width * length / 2
    return 4 * n_frozen + 6 * n_trainable + 3 * attention


def shapes_of(options: argparse.Namespace) -> PretrainedConfig:
    """Returns the configuration of the model, with the width and number of layers of the options, if they are set."""
    config = config_of(options.model)
    if config.model_type not in ("qwen2", "qwen3"):
        raise SystemExit(
            f"error: --model: got the model type {config.model_type!r}, expected qwen2 or qwen3. Choose a Qwen model."
        )
    if options.width:
        config.intermediate_size = int(config.intermediate_size * options.width / config.hidden_size) // 64 * 64
        config.hidden_size, config.head_dim, config.vocab_size = options.width, 64, 1000
        config.num_attention_heads = config.num_key_value_heads = max(1, options.width // 64)
    if options.layers:
        config = with_layers(config, options.layers)
    config.pad_token_id, config.num_labels = 0, 2
    if options.attn_implementation:
        config._attn_implementation = options.attn_implementation
    return config


def n_parameters(model: nn.Module) -> int:
    """Returns the number of parameters. A quantized matrix counts with its original shape."""
    packed = [p.quant_state.shape.numel() if hasattr(p, "quant_state") else p.numel() for p in model.parameters()]
    return sum(packed)


def main() -> None:
    parser = CommandLine(description=__doc__, formatter_class=HelpFormatter)
    parser.add_argument(
        "--model", default="Qwen/Qwen-7B", help="Model whose shapes are used: name on the Hub, or local directory."
    )
    parser.add_argument("--load_in_4bit", action="store_true", help="Quantize the base model to 4 bits (nf4).")
    parser.add_argument("--layers", type=int, default=None, help="Number of layers (default: as in the model).")
    parser.add_argument(
        "--width",
        type=int,
        default=None,
        help="Hidden size. Other sizes are scaled in proportion (default: as in the model).",
    )
    parser.add_argument("--n_rows", type=int, default=32, help="Number of rows in an optimizer step.")
    parser.add_argument("--length", type=int, default=512, help="Length of every row in tokens.")
    parser.add_argument(
        "--max_tokens",
        type=int,
        default=8192,
        help="Largest number of tokens in a micro-batch: by default 16 rows of --length.",
    )
    parser.add_argument(
        "--no_checkpointing", action="store_true", help="Keep all activations in memory (no gradient checkpointing)."
    )
    parser.add_argument(
        "--steps",
        type=int,
        default=4,
        help="Number of optimizer steps, at least 2. The first step is not timed.",
    )
    parser.add_argument("--torch_compile", action="store_true", help="Compile the model with torch.compile.")
    parser.add_argument(
        "--attn_implementation",
        default=None,
        help="Attention implementation, such as sdpa (default: the choice of transformers).",
    )
    parser.add_argument("--output_file", type=Path, default=None, help="JSON file to which the results are written.")
    options = parser.parse_args()
    if options.steps < 2:
        parser.error(f"--steps: got {options.steps}, expected 2 or more, because the first step is not timed.")

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    config = shapes_of(options)
    start = time.perf_counter()
    lora = LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="SEQ_CLS")
    model = fresh_adapter(random_base(config, device, options.load_in_4bit), lora, seed=0)
    model.to(device)
    seconds_to_make = time.perf_counter() - start
    generator = torch.Generator().manual_seed(0)
    n = options.n_rows
    rows = Dataset.from_dict(
        {
            "input_ids": torch.randint(1, config.vocab_size, (n, options.length), generator=generator).tolist(),
            "attention_mask": [[1] * options.length] * n,
            "labels": torch.rand(n, generator=generator).tolist(),
        }
    )
    clock = Clock(device)
    with tempfile.TemporaryDirectory() as directory:
        args = WeakToStrongConfig(
            output_dir=directory, loss_type="confidence", bf16=True, max_steps=options.steps, learning_rate=1e-4,
            per_device_train_batch_size=n, max_tokens_per_micro_batch=options.max_tokens, save_strategy="no",
            gradient_checkpointing=not options.no_checkpointing, optim="adamw_torch_fused", logging_steps=1,
            report_to="none", disable_tqdm=True, torch_compile=options.torch_compile,
            use_cpu=device.type == "cpu",
        )  # fmt: skip
        trainer = WeakToStrongTrainer(model=model, args=args, train_dataset=rows, callbacks=[clock])
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    if not all(math.isfinite(loss) for loss in losses):
        raise SystemExit(f"error: Got the losses {losses}, expected finite numbers. The measurement is not valid.")

    seconds = sum(clock.seconds[1:]) / len(clock.seconds[1:])
    tokens_per_second = n * options.length / seconds
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
    peak_flops = next((value for part, value in PEAK_FLOPS.items() if part in name), None)
    flops = flops_per_token(model, options.length) * tokens_per_second
    estimate = estimate_memory(
        config, load_in_4bit=options.load_in_4bit, peft_config=lora, length=options.length, optim="adamw_torch_fused",
        n_rows=max(1, min(n, options.max_tokens // options.length)),
        gradient_checkpointing=not options.no_checkpointing,
    )  # fmt: skip
    peak_bytes = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None
    report = {
        "settings": {**vars(options), "model": Path(options.model).name, "output_file": None},
        "device": hardware(),
        "n_parameters": n_parameters(model),
        "seconds_to_make": seconds_to_make,
        "seconds_per_step": seconds,
        "rows_per_second": n / seconds,
        "tokens_per_second": tokens_per_second,
        "tflops_per_second": flops / 1e12,
        "utilisation": None if peak_flops is None else flops / peak_flops,
        "peak_bytes": peak_bytes,
        "estimated_peak_bytes": estimate.peak,
        "losses": losses,
    }
    print(json.dumps(report, indent=2))
    if peak_bytes is None:
        print(f"Peak memory is measured on GPUs only. The estimate is {gib(estimate.peak)} GiB.")
    if options.output_file:
        options.output_file.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
