"""Weak-to-strong generalization on any task of the package, by name:

    accelerate launch recipes/nlp.py --task sst2 --config recipes/configs/single_gpu.yaml
    accelerate launch recipes/nlp.py --task sst2 --weak_model gpt2 --student_model gpt2-xl --dataset_path data/sst2

Every other option is that of recipes/boolq.py.
"""

import argparse
from pathlib import Path

from w2s_hf.experiments.arguments import finish, parse_arguments, run_recipe
from w2s_hf.experiments.classification import run_classification
from w2s_hf.tasks import TASKS

DEMO_CONFIG = Path(__file__).parent / "configs" / "demo.yaml"


def main() -> None:
    task_parser = argparse.ArgumentParser(add_help=False)
    task_parser.add_argument("--task", choices=sorted(TASKS), default="boolq")
    task, argv = task_parser.parse_known_args()
    args, training_args, student_config = parse_arguments(__doc__, DEMO_CONFIG, argv)
    finish(run_classification(task.task, args, training_args, student_config), args, training_args)


if __name__ == "__main__":
    run_recipe(main)
