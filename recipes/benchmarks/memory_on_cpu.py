"""
Compares the memory of a LoRA student on this CPU with the estimate of `w2s_hf.memory`.

    python recipes/benchmarks/memory_on_cpu.py HuggingFaceTB/SmolLM2-135M
    python recipes/benchmarks/memory_on_cpu.py DIRECTORY --load_in_4bit --n_rows 4 --length 128

Measures the memory that torch allocates and frees in a training step and in a prediction, from the memory events of
`torch.profiler`. The resident size of the process is not used, because it includes libraries and pages that the
allocator retains. Weights, gradients and optimizer states are counted by their tensors. The batches contain padding,
as most batches do. Padding increases the memory, because torch repeats keys and values of grouped heads if there is a
mask. Prints MiB.
"""

from collections.abc import Callable

import torch
from peft import LoraConfig
from torch.profiler import ProfilerActivity, profile

from w2s_hf import fresh_adapter, load_student
from w2s_hf.cards.markdown import markdown_table
from w2s_hf.command_line import CommandLine, HelpFormatter
from w2s_hf.memory import StudentMemory
from w2s_hf.modeling import disable_dropout


def peak_of(run: Callable[[], object]) -> int:
    """Returns the peak of the memory that is allocated while a function runs, in bytes."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        run()
    events = [event for event in profiler.profiler.kineto_results.events() if event.name() == "[memory]"]
    now = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        now += event.nbytes()
        peak = max(peak, now)
    return peak


def measure(model: str, n_rows: int, length: int, n_predicted_rows: int, load_in_4bit: bool) -> dict[str, tuple]:
    """
    Returns measured and estimated bytes by name.

    Args:
        model (`str`): Name on the Hub, or local directory.
        n_rows (`int`): Rows per micro-batch.
        length (`int`): Tokens per row.
        n_predicted_rows (`int`): Rows per batch of a prediction.
        load_in_4bit (`bool`): Whether the base model is quantized.
    """
    lora = LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="SEQ_CLS")
    base = load_student(model, num_labels=2, dtype="float32", load_in_4bit=load_in_4bit)
    base.config.get_text_config().pad_token_id = 0
    student = fresh_adapter(base, lora)
    disable_dropout(student)
    trainable = [parameter for parameter in student.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trainable)

    def forward(n: int) -> torch.Tensor:
        ids = torch.randint(1, 1000, (n, length))
        mask = torch.ones_like(ids)
        mask[0, -1] = 0
        kwargs = {"use_cache": False} if hasattr(student.config.get_text_config(), "use_cache") else {}
        return student(input_ids=ids, attention_mask=mask, **kwargs).logits

    def step() -> None:
        forward(n_rows).float().logsumexp(dim=-1).mean().backward()

    def predict() -> None:
        with torch.no_grad():
            forward(n_predicted_rows)

    student.train()
    step()
    optimizer.step()  # creates the optimizer states; gradients remain allocated, as during accumulation
    training = peak_of(step)
    state = [tensor for entry in optimizer.state.values() for tensor in entry.values() if tensor.numel() > 1]
    student.eval()
    prediction = peak_of(predict)
    estimate = StudentMemory(model, dtype="float32", bf16=False, peft_config=lora, load_in_4bit=load_in_4bit).estimate(
        n_rows, length, n_predicted_rows
    )
    gradients = sum(parameter.grad.nbytes for parameter in trainable if parameter.grad is not None)
    between = estimate.weights + sum(t.nbytes for t in (*trainable, *state))
    if not load_in_4bit:  # for 4-bit weights, bitsandbytes also stores constants, which parameters() does not list
        frozen = [parameter for parameter in student.parameters() if not parameter.requires_grad]
        between += sum(t.nbytes for t in (*frozen, *student.buffers())) - estimate.weights
    return {
        "passes of training": (training, estimate.activations),
        "pass of prediction": (prediction, estimate.prediction),
        "peak of training": (between + gradients + training, estimate.training_peak),
        "peak of prediction": (between + prediction, estimate.resident + estimate.prediction),
    }


def main() -> None:
    parser = CommandLine(description=__doc__, formatter_class=HelpFormatter)
    parser.add_argument("model", help="Model to measure: name on the Hub, or local directory.")
    parser.add_argument(
        "--n_rows", type=int, default=4, help="Number of rows in the micro-batch of the measured training step."
    )
    parser.add_argument("--length", type=int, default=128, help="Length of every row in tokens.")
    parser.add_argument(
        "--n_predicted_rows", type=int, default=16, help="Number of rows in the batch of the measured prediction."
    )
    parser.add_argument("--load_in_4bit", action="store_true", help="Quantize the base model to 4 bits (nf4).")
    options = parser.parse_args()
    bytes_by_name = measure(**vars(options))
    lines = [
        [name, f"{measured / 2**20:.1f}", f"{estimated / 2**20:.1f}", f"{estimated / measured - 1:+.1%}"]
        for name, (measured, estimated) in bytes_by_name.items()
    ]
    print(markdown_table(["", "measured", "estimated", "difference"], lines))


if __name__ == "__main__":
    main()
