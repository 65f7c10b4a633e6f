"""The command line of `w2s memory`, for example `w2s memory Qwen/Qwen-72B --gpus 1x80`."""

import argparse
import sys

from ..cards.markdown import markdown_table
from ..command_line import CommandLine, HelpFormatter
from .estimate import GIB, OPTIMIZERS, gib, memory_table, usable_bytes
from .seed_models import SEED_MODELS


def _gpus(text: str) -> tuple[int, int]:
    """Returns the number of GPUs and the bytes of each, from a text such as `4x24`."""
    n_gpus, _, size = text.partition("x")
    try:
        if int(n_gpus) < 1 or float(size) <= 0:
            raise ValueError
        return int(n_gpus), int(float(size) * GIB)
    except ValueError:
        raise argparse.ArgumentTypeError(f"got {text!r}, expected COUNTxGIB such as 1x80 or 4x24") from None


def main(argv: list[str] | None = None) -> None:
    """Runs the command `w2s memory`: prints the memory of a model in training, or the models with known shapes."""
    parser = CommandLine(
        prog="w2s memory",
        usage="w2s memory MODEL [options]",
        description="Prints the GPU memory that training a model needs, and the largest micro-batch that fits. It\n"
        "reads only the configuration of the model, and downloads no weights.\n\nexamples:\n"
        "  w2s memory Qwen/Qwen2.5-7B --gpus 1x24\n"
        "  w2s memory Qwen/Qwen-72B --gpus 4x80 --length 1024\n  w2s memory --list",
        formatter_class=HelpFormatter,
    )
    parser.add_argument(
        "model", nargs="?", metavar="MODEL", default=argparse.SUPPRESS, help="Hub id or local directory of the model"
    )
    parser.add_argument(
        "--gpus",
        type=_gpus,
        default="1x80",
        metavar="COUNTxGIB",
        help="number of GPUs, and the memory of each GPU in GiB",
    )
    parser.add_argument(
        "--length",
        type=int,
        default=512,
        metavar="N",
        help="padded length of a row in tokens, as in w2s run",
    )
    parser.add_argument(
        "--task_type",
        choices=["SEQ_CLS", "REWARD", "CAUSAL_LM"],
        default="SEQ_CLS",
        help="kind of model: classifier, reward model (each row is a pair of two texts) or language model",
    )
    parser.add_argument(
        "--lora_r", type=int, default=16, metavar="N", help="rank of the LoRA adapters on all linear layers"
    )
    parser.add_argument(
        "--optim",
        choices=list(OPTIMIZERS),
        default="adamw_torch_fused",
        metavar="NAME",
        help=f"optimizer of the training run: {', '.join(OPTIMIZERS)}",
    )
    parser.add_argument(
        "--no_gradient_checkpointing",
        action="store_true",
        default=argparse.SUPPRESS,
        help="keep all activations instead of recomputing them in the backward pass",
    )
    parser.add_argument(
        "--list",
        action="store_true",
        default=argparse.SUPPRESS,
        help="print the models whose shapes are known offline, and exit",
    )
    args = parser.parse_args(argv)
    if "list" in args:
        lines = [[name, str(model.learning_rate or "")] for name, model in SEED_MODELS.items()]
        print(markdown_table(["model", "learning rate of the published code (all weights are trained)"], lines))
        return
    if "model" not in args:
        parser.error("Got no model, expected a model or --list. Give a Hub id or a local directory.")
    n_gpus, total = args.gpus
    try:
        table = memory_table(
            args.model, gpus=args.gpus, length=args.length, lora_r=args.lora_r, optim=args.optim,
            task_type=args.task_type, gradient_checkpointing="no_gradient_checkpointing" not in args,
        )  # fmt: skip
    except OSError as error:
        sys.exit(f"error: {error}\n`w2s memory --list` prints the models whose shapes are known offline.")
    except ValueError as error:
        sys.exit(f"error: {error}")
    row = "pair" if args.task_type == "REWARD" else "row"
    print(
        f"{args.model}: memory on each GPU in GiB, for one {row} of {args.length} tokens per micro-batch. "
        f"GPUs: {n_gpus}, each with {gib(total)} GiB, of which {gib(usable_bytes(total))} are usable.\n\n{table}"
    )


if __name__ == "__main__":
    main()
