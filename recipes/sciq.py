"""Weak-to-strong generalization on SciQ: science exam questions, a right and a wrong answer to each.

The embedded demo (no network, no GPU; two minutes on two CPU cores):

    accelerate launch recipes/sciq.py

The real task, with Qwen2.5-0.5B as supervisor and a 4-bit LoRA student of 7B, on one GPU of 24 GB:

    accelerate launch recipes/sciq.py --config recipes/configs/single_gpu.yaml

Your own models and a local copy of the rows:

    accelerate launch recipes/sciq.py --weak_model gpt2 --student_model gpt2-xl --dataset_path data/sciq
"""

from pathlib import Path

from w2s_hf.experiments.cli import finish, parse_arguments, run_recipe
from w2s_hf.experiments.experiment import run_experiment

DEMO_CONFIG = Path(__file__).parent / "configs" / "demo.yaml"


def main() -> None:
    args, training_args, student_config = parse_arguments(__doc__, DEMO_CONFIG, task="sciq")
    results = run_experiment("sciq", args, training_args, student_config)
    finish(results, args, training_args)


if __name__ == "__main__":
    run_recipe(main)
