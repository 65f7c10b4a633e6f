"""Weak-to-strong generalization on any task of the package, or on your own, by name.

The tasks, and the embedded demo in the schema of one of them:

    accelerate launch recipes/nlp.py --list_tasks
    accelerate launch recipes/nlp.py --task quail

The real task, on one GPU of 24 GB, or with your own models and a local copy of the rows:

    accelerate launch recipes/nlp.py --task quail --config recipes/configs/single_gpu.yaml
    accelerate launch recipes/nlp.py --task quail --weak_model gpt2 --student_model gpt2-xl --dataset_path data/quail

Real models and rows without a GPU; each model trains in minutes:

    python recipes/nlp.py --task sst2 --config cpu_real

A task of your own, defined in a Python file (see the README):

    accelerate launch recipes/nlp.py --task my_task.py --config recipes/configs/single_gpu.yaml
"""

from pathlib import Path

from w2s_hf.experiments.cli import finish, parse_arguments, run_recipe
from w2s_hf.experiments.config import AnyTaskArguments
from w2s_hf.experiments.experiment import run_experiment

DEMO_CONFIG = Path(__file__).parent / "configs" / "demo.yaml"


def main() -> None:
    args, training_args, student_config = parse_arguments(__doc__, DEMO_CONFIG, experiment=AnyTaskArguments)
    results = run_experiment(args.task, args, training_args, student_config)
    finish(results, args, training_args)


if __name__ == "__main__":
    run_recipe(main)
