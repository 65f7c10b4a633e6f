"""Weak-to-strong generalization on Amazon reviews: is a product review positive?

The embedded demo (no network, no GPU; two minutes on two CPU cores):

    accelerate launch recipes/amazon_polarity.py

The real task, with Qwen2.5-0.5B as supervisor and a 4-bit LoRA student of 7B, on one GPU of 24 GB:

    accelerate launch recipes/amazon_polarity.py --config recipes/configs/single_gpu.yaml

Your own models and a local copy of the rows:

    accelerate launch recipes/amazon_polarity.py --weak_model gpt2 --student_model gpt2-xl \\
        --dataset_path data/amazon_polarity
"""

from pathlib import Path

from w2s_hf.experiments.cli import finish, parse_arguments, run_recipe
from w2s_hf.experiments.experiment import run_experiment

DEMO_CONFIG = Path(__file__).parent / "configs" / "demo.yaml"


def main() -> None:
    args, training_args, student_config = parse_arguments(__doc__, DEMO_CONFIG, task="amazon_polarity")
    results = run_experiment("amazon_polarity", args, training_args, student_config)
    finish(results, args, training_args)


if __name__ == "__main__":
    run_recipe(main)
