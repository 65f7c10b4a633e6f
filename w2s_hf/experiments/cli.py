"""The command line of a recipe."""

import os
import re
import sys
from argparse import Namespace
from dataclasses import fields
from pathlib import Path

import datasets
import transformers
from huggingface_hub import get_token

from .._compat import get_available_reporting_integrations
from ..config import AnyConfig, LossArguments, StudentConfig, WeakToStrongConfig
from ..publish import push_students
from ..results import ExperimentResult
from ..tasks import find_task
from .config import BOOTSTRAP, AnyTaskArguments, ClassificationArguments, ExperimentArguments
from .config_file import RecipeParser
from .console import run_recipe
from .report import print_table

__all__ = ["check_directory", "finish", "parse_arguments", "run_recipe"]

# A command line with one of these options is a real experiment; without all of them it is the embedded demo.
_REAL = ("config", "dataset_path", "weak_model", "student_model")

# Shown by --help, and replaced when the task is known.
_DEFAULT_OUTPUT_DIR = "outputs/TASK"
# Their demos have the names of the configurations alone: outputs/demo, outputs/demo_reward, outputs/demo_chess.
_TASKS_OF_DEMOS = ("boolq", "anthropic_hh", "chess_puzzles")


def parse_arguments(
    description: str,
    demo_config: Path,
    argv: list[str] | None = None,
    experiment: type[ExperimentArguments] = ClassificationArguments,
    training: type[AnyConfig] = WeakToStrongConfig,
    real_config: str = "single_gpu.yaml",
    announce: bool = True,
    task: str | None = None,
) -> tuple[ExperimentArguments, AnyConfig, StudentConfig]:
    """
    Reads a recipe's command line. `--config` takes a file, or the name of a configuration beside `demo_config`.

    Args:
        description (`str`): The first lines of `--help`.
        demo_config (`Path`): The configuration for a command line without model, data and configuration. If it has
            options of a chain, `NAME_ladder.yaml` beside the file is taken instead, where it exists.
        argv (`list[str]`, *optional*): Defaults to that of the process.
        experiment (`type`, *optional*, defaults to [`ClassificationArguments`]): The arguments of the experiment.
        training (`type`, *optional*, defaults to [`WeakToStrongConfig`]): The arguments of its trainer.
        real_config (`str`, *optional*, defaults to `"single_gpu.yaml"`): The configuration that messages suggest.
        announce (`bool`, *optional*, defaults to `True`): Print that the demo runs; `False` for a cell of a sweep.
        task (`str`, *optional*): Name of the recipe's task, for the default of `--output_dir`: `outputs/TASK`, or for
            the demo `outputs/demo`, with the name of the task where it is not the demo's own.
    """
    argv = sys.argv[1:] if argv is None else argv
    parser = RecipeParser(
        (experiment, training, StudentConfig),
        configs=demo_config.parent,
        description=description,
        usage="%(prog)s [--config FILE] [--option VALUE ...]",  # not a page of 200 names before the first sentence
    )
    parser.set_defaults(output_dir=_DEFAULT_OUTPUT_DIR)
    try:
        # 1 The options that the command line contains choose the configuration.
        given = parser.given(argv)
        config = given.config or _demo_config(given, demo_config)
        # 2 The values of all options. The fourth part is the namespace of --config.
        args, training_args, student_config, _ = parser.parse(argv, config)
        # 3 Defaults that depend on other options.
        if training_args.output_dir == _DEFAULT_OUTPUT_DIR:
            training_args.output_dir = _default_output_dir(args, config or demo_config, task)
        if announce:  # a sweep gives all cells the same --ladder, and each cell one method
            _add_bootstrap(args, given)
        # 4 Checks of values that no dataclass can check alone.
        _check_models(args, real_config)
        _check_training(training_args, student_config, given)
        check_numbers(args, training_args, student_config)
        check_reporting(training_args.report_to)
        check_directory("--output_dir", training_args.output_dir)
    except (ValueError, OSError, ImportError) as error:
        parser.error(str(error))
    # 5 The demo says that it is one.
    if args.demo:
        # Models and tables this small are read and written in no time; the bars of training remain.
        datasets.disable_progress_bars()
        transformers.utils.logging.disable_progress_bar()
        if announce and training_args.process_index == 0:
            _announce_demo(args, real_config)
    return args, training_args, student_config


def _announce_demo(args: ExperimentArguments, real_config: str) -> None:
    """Prints that this is the demo, and the command of the real task."""
    script = sys.argv[0] + (f" --task {args.task}" if isinstance(args, AnyTaskArguments) else "")
    print(
        "This is the embedded demo: generated rows, and models of at most 0.2 million parameters pretrained here and "
        "now.\nThe real task, on one GPU:  "
        f"accelerate launch {script} --config recipes/configs/{real_config}",
        flush=True,
    )


def _demo_config(given: Namespace, demo_config: Path) -> Path | None:
    """
    Returns the configuration of the demo, or `None` where a model, data or a configuration is given. A chain has a
    demo of its own, `NAME_ladder.yaml`, if the recipe ships one.
    """
    if any(vars(given)[name] is not None for name in _REAL):
        return None
    # With --analyses agreement, the models of --ladder are compared and are no chain.
    is_ladder_chain = given.ladder is not None and "agreement" not in (given.analyses or [])
    if BOOTSTRAP in (given.methods or []) or is_ladder_chain:
        chain_config = demo_config.with_name(f"{demo_config.stem}_ladder.yaml")
        return chain_config if chain_config.is_file() else demo_config
    return demo_config


def _add_bootstrap(args: ExperimentArguments, given: Namespace) -> None:
    """Adds the method of the chain whose models `--ladder` names; raises `ValueError` if other methods are given."""
    if given.ladder is None or BOOTSTRAP in args.methods or args.sizes:
        return
    if given.methods is not None:
        raise ValueError(
            f"Got --ladder, and neither --methods {BOOTSTRAP}, which climbs it, nor --analyses agreement, "
            "which compares its models."
        )
    args.methods = [*args.methods, BOOTSTRAP]
    args.check_chain()


def _check_models(args: ExperimentArguments, real_config: str) -> None:
    """Raises `ValueError` where a model is missing, or the demo's models are given real rows."""
    if args.demo:
        if args.dataset_path is not None:
            raise ValueError("Got --dataset_path and the demo's configuration, whose models know no real words.")
        return
    missing = [f"--{name}" for name in ("weak_model", "student_model") if getattr(args, name) is None]
    if missing:
        raise ValueError(
            f"Got no {' and no '.join(missing)}. Name both models, or take them from a configuration such as "
            f"--config recipes/configs/{real_config}; with no model and no data named, the demo runs."
        )


# Options of a trainer that the experiment sets for each training, and the options that say to what.
_SET_BY = {"seed": "--seeds", "data_seed": "--seeds", "loss_type": "--methods", "hub_model_id": "--hub_namespace"}


def _check_training(training_args: AnyConfig, student_config: StudentConfig, given: Namespace) -> None:
    """Raises `ValueError` where an option of the trainer or the student does not go with another one."""
    for of_field in fields(training_args):
        name, value = of_field.name, getattr(training_args, of_field.name)
        if name not in _SET_BY or (name == "loss_type" and not isinstance(training_args, LossArguments)):
            continue  # trainers of TRL have a loss_type of their own
        if vars(given)[name] is not None or value != of_field.default:
            raise ValueError(f"--{name}: got {value}, and recipes set it by {_SET_BY[name]}. Use that option.")
    if training_args.hub_token is not None:
        raise ValueError("Got --hub_token, which others can read in the list of processes: set HF_TOKEN instead.")
    if student_config.lora_dropout and training_args.disable_dropout:
        raise ValueError(
            f"Got --lora_dropout {student_config.lora_dropout}, and all dropout is set to 0: add "
            "--disable_dropout false."
        )
    if training_args.push_to_hub and get_token() is None:
        raise ValueError("Got --push_to_hub and no token: set HF_TOKEN, or log in with `hf auth login`.")


# The smallest values. transformers, peft and torch accept smaller ones, or refuse them only when a model is trained.
_AT_LEAST = {
    "per_device_train_batch_size": 1, "per_device_eval_batch_size": 1, "gradient_accumulation_steps": 1, "lora_r": 1,
    "lora_alpha": 1, "learning_rate": 0, "weak_learning_rate": 0, "weight_decay": 0, "weak_weight_decay": 0,
    "num_train_epochs": 0, "weak_num_train_epochs": 0, "split_seed": 0,
}  # fmt: skip


def check_numbers(*arguments: ExperimentArguments | AnyConfig | StudentConfig) -> None:
    """Raises `ValueError` where a number of rows, steps or a rate is too small to mean anything."""
    values = {name: value for part in arguments for name, value in vars(part).items()}
    for name, smallest in _AT_LEAST.items():
        if values[name] is not None and not values[name] >= smallest:  # NaN, too
            raise ValueError(f"--{name}: got {values[name]}, expected at least {smallest}.")
    if values["max_steps"] == 0:
        raise ValueError("--max_steps: got 0, expected a positive number of steps, or -1 to train --num_train_epochs.")
    wrong = [seed for seed in values["seeds"] if not 0 <= seed < 2**32]
    if wrong:
        raise ValueError(f"--seeds: got {wrong[0]}, expected integers from 0 to {2**32 - 1}.")


def check_reporting(report_to: list[str]) -> None:
    """Raises `ValueError` where a tracker of `--report_to` is unknown or not installed."""
    installed = get_available_reporting_integrations()
    missing = [name for name in report_to if name not in installed]
    if missing:
        raise ValueError(
            f"--report_to: got {missing[0]}, which is not installed or not known, expected none or some of "
            f"{', '.join(installed) or '(no tracker is installed)'}. Install it, or set --report_to none."
        )


def check_directory(option: str, path: str) -> None:
    """Raises `ValueError` where nothing can be written below `path`."""
    directory = Path(path).absolute()
    existing = next(place for place in (directory, *directory.parents) if place.exists())
    if not existing.is_dir():
        raise ValueError(f"{option}: got {path!r}, and {existing.name!r} is a file. Name another directory.")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise ValueError(f"{option}: got {path!r}, and {str(existing)!r} is not writable. Name another directory.")


def _default_output_dir(args: ExperimentArguments, config: Path, task: str | None) -> str:
    """Returns the default output directory, which is a different one for each task."""
    if isinstance(args, AnyTaskArguments) and args.task is not None:
        task = find_task(args.task).name
    name = task or "experiment"
    if args.demo:
        name = config.stem if task is None or task in _TASKS_OF_DEMOS else f"{config.stem}_{task}"
    return "outputs/" + re.sub(r"[^\w.-]+", "-", name)


def finish(results: ExperimentResult | dict, args: ExperimentArguments, training_args: AnyConfig) -> None:
    """Prints the final table on rank 0 and, with `--push_to_hub`, uploads the students."""
    if training_args.process_index:
        return
    print_table(results, training_args.output_dir)
    if training_args.push_to_hub:
        private = True if args.hub_private else training_args.hub_private_repo
        push_students(training_args.output_dir, namespace=args.hub_namespace, private=private)
