"""The command line of the memory estimate: `python -m w2s_hf.memory Qwen/Qwen-72B --gpus 1x80`."""

import argparse
import sys

from ..cards.markdown import markdown_table
from ..command_line import CommandLine
from .estimate import GIB, OPTIMIZERS, gib, memory_table, usable_bytes
from .seed_models import SEED_MODELS


def _gpus(text: str) -> tuple[int, int]:
    """Returns the number of GPUs, and the bytes of one, of a text such as `4x24`."""
    n_gpus, _, size = text.partition("x")
    try:
        if int(n_gpus) < 1 or float(size) <= 0:
            raise ValueError
        return int(n_gpus), int(float(size) * GIB)
    except ValueError:
        raise argparse.ArgumentTypeError(f"got {text!r}, expected COUNTxGIB such as 1x80 or 4x24") from None


def main(argv: list[str] | None = None) -> None:
    """Prints the memory of each way of training a model, or the models whose shapes are known."""
    parser = CommandLine(
        prog="python -m w2s_hf.memory",
        description="Memory of a student in training, per GPU, from its configuration alone; what fits, and the "
        "largest micro-batch.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("model", nargs="?", help="Hub id or local directory; only its config.json is read")
    parser.add_argument("--gpus", type=_gpus, default="1x80", metavar="COUNTxGIB", help="GPUs, and the GiB of one")
    parser.add_argument("--length", type=int, default=512, help="tokens of a row, padding included")
    parser.add_argument("--task_type", choices=["SEQ_CLS", "REWARD", "CAUSAL_LM"], default="SEQ_CLS",
                        help="REWARD counts pairs, of two rows each")  # fmt: skip
    parser.add_argument("--lora_r", type=int, default=16, help="rank of the adapters, on all linear layers")
    parser.add_argument("--optim", choices=list(OPTIMIZERS), default="adamw_torch_fused", help="optimizer")
    parser.add_argument("--no_gradient_checkpointing", action="store_true", help="keep all activations")
    parser.add_argument("--list", action="store_true", help="print the models whose shapes are known, and stop")
    args = parser.parse_args(argv)
    if args.list:
        lines = [[name, str(model.learning_rate or "")] for name, model in SEED_MODELS.items()]
        print(markdown_table(["model", "learning rate of the published code, all weights"], lines))
        return
    if args.model is None:
        parser.error("expected a model, or --list")
    n_gpus, total = args.gpus
    try:
        table = memory_table(
            args.model, gpus=args.gpus, length=args.length, lora_r=args.lora_r, optim=args.optim,
            task_type=args.task_type, gradient_checkpointing=not args.no_gradient_checkpointing,
        )  # fmt: skip
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
    rows = "pairs" if args.task_type == "REWARD" else "rows"
    print(
        f"{args.model}: GiB on each GPU, {rows} of {args.length} tokens one at a time. GPUs: {n_gpus} of "
        f"{gib(total)} GiB, of which {gib(usable_bytes(total))} are usable.\n\n{table}"
    )


if __name__ == "__main__":
    main()
