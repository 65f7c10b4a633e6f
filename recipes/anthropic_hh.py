"""Weak-to-strong generalization of reward models on Anthropic HH: which of two replies is the better one?

The embedded demo (no network, no GPU; two minutes on two CPU cores):

    accelerate launch recipes/anthropic_hh.py

The real task, with Qwen2.5-0.5B as supervisor and a 4-bit LoRA student of 7B, on one GPU of 24 GB:

    accelerate launch recipes/anthropic_hh.py --config recipes/configs/single_gpu.yaml --num_train_epochs 1 \\
        --load_best_model_at_end false

Real models and pairs without a GPU:

    python recipes/anthropic_hh.py --config cpu_real_reward

Your own models, and your own pairs in any of TRL's preference formats (chosen, rejected, and prompt or none; text or
messages), in a local directory or file:

    accelerate launch recipes/anthropic_hh.py --weak_model gpt2 --student_model gpt2-xl --dataset_path data/pairs.jsonl

Students and ceiling can learn to write the replies before they judge them: --generative_finetuning true.
"""

from pathlib import Path

from w2s_hf.config import RewardPairConfig
from w2s_hf.experiments.cli import finish, parse_arguments, run_recipe
from w2s_hf.experiments.config import RewardArguments
from w2s_hf.experiments.experiment import run_experiment
from w2s_hf.tasks import PREFERENCE_TASKS

DEMO_CONFIG = Path(__file__).parent / "configs" / "demo_reward.yaml"


def main() -> None:
    args, training_args, student_config = parse_arguments(
        __doc__, DEMO_CONFIG, experiment=RewardArguments, training=RewardPairConfig, task="anthropic_hh"
    )
    results = run_experiment(PREFERENCE_TASKS["anthropic_hh"], args, training_args, student_config)
    finish(results, args, training_args)


if __name__ == "__main__":
    run_recipe(main)
