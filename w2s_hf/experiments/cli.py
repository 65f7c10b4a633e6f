"""The command line of a recipe."""

import os
import re
import sys
import textwrap
from argparse import Namespace
from dataclasses import dataclass, fields
from pathlib import Path

import datasets
import transformers
from huggingface_hub import get_token

from .._compat import get_available_reporting_integrations
from ..command_line import CommandLine
from ..config import (
    AnyConfig,
    CompletionConfig,
    LossArguments,
    RewardPairConfig,
    StudentConfig,
    WeakToStrongConfig,
)
from ..launch import CONFIGS
from ..methods import BOOTSTRAP
from ..publish import push_students
from ..results import ExperimentResult
from ..tasks import CHESS_TASK, GenerationTask, PreferenceTask, Task, find_any_task, find_task
from .config import (
    AnyTaskArguments,
    ChessArguments,
    ClassificationArguments,
    ExperimentArguments,
    GenerationArguments,
    RewardArguments,
)
from .config_file import RecipeParser
from .experiment import ExperimentTask, run_experiment
from .report import print_table

__all__ = [
    "COMMAND_LINES",
    "CommandLineOptions",
    "check_directory",
    "finish",
    "options_of",
    "parse_arguments",
    "run_named_task",
    "run_task",
]

# A command line with one of these options runs a real experiment. Without these options, the embedded demo runs.
_REAL = ("config", "dataset_path", "weak_model", "student_model")

# `--help` shows this value. The directory of the task replaces it.
_DEFAULT_OUTPUT_DIR = "outputs/TASK"
# The demos of these tasks have the names of configurations: outputs/demo, outputs/demo_reward, outputs/demo_chess.
_TASKS_OF_DEMOS = ("boolq", "anthropic_hh", CHESS_TASK)


@dataclass(frozen=True)
class CommandLineOptions:
    """
    The options of a setting on the command line.

    Args:
        arguments (`type`): The arguments of the experiment.
        training (`type`): The arguments of its trainer.
        demo_config (`str`, *optional*): The shipped configuration of the demo; `None` for a setting without a demo.
        real_config (`str`, *optional*): The shipped configuration that messages suggest for the real task.
        real_options (`str`): Options that messages suggest together with `real_config`.
    """

    arguments: type[ExperimentArguments]
    training: type[AnyConfig]
    demo_config: str | None
    real_config: str | None
    real_options: str = ""


COMMAND_LINES = {
    "classification": CommandLineOptions(ClassificationArguments, WeakToStrongConfig, "demo", "single_gpu"),
    "reward": CommandLineOptions(
        RewardArguments,
        RewardPairConfig,
        "demo_reward",
        "single_gpu",
        " --num_train_epochs 1 --load_best_model_at_end false",
    ),
    "chess": CommandLineOptions(ChessArguments, CompletionConfig, "demo_chess", "single_gpu_chess"),
    "generation": CommandLineOptions(GenerationArguments, CompletionConfig, None, None),
}


def options_of(task: ExperimentTask) -> CommandLineOptions:
    """Returns the command line of the setting of a task."""
    if isinstance(task, GenerationTask):
        return COMMAND_LINES["chess" if task.name == CHESS_TASK else "generation"]
    return COMMAND_LINES["reward" if isinstance(task, PreferenceTask) else "classification"]


# `--help` shows these options in this order, each with a short text. `--help all` shows their full texts.
_ESSENTIAL = {
    "config": "Shipped configuration (see below), or a YAML file of option values.",
    "weak_model": "Weak supervisor: Hub id or local directory.",
    "student_model": "Strong student: Hub id or local directory.",
    "dataset_path": "Local directory or file of the rows. Default: download from the Hub.",
    "methods": "Training methods, such as naive, reverse_kl, self_labels, or my_method.py:NAME.",
    "seeds": "Random seeds. Each seed runs the whole experiment once.",
    "n_train": "Rows of students and ceiling. Default: 45 %% of training rows.",
    "n_weak": "Training rows of the supervisor. Default: the value of --n_train.",
    "n_test": "Number of test rows. Default: all.",
    "max_train_rating": "Also train on puzzles up to this rating, and test on harder puzzles.",
    "generative_finetuning": "Finetune on both responses before reward training.",
    "analyses": "Additional analyses to run.",
    "learning_rate": "Learning rate of students and ceiling.",
    "num_train_epochs": "Number of training epochs of students and ceiling.",
    "per_device_train_batch_size": "Number of rows of an optimizer step on each device.",
    "max_length": "Maximum length of a row in tokens.",
    "max_new_tokens": "Maximum length of a completion in tokens.",
    "use_peft": "Train LoRA adapters and the head, not all weights.",
    "lora_r": "Rank of the LoRA adapters.",
    "load_in_4bit": "Quantize the frozen weights of the student (QLoRA).",
    "bf16": "Train in bfloat16 mixed precision.",
    "output_dir": "Directory for results, report and students.",
    "push_to_hub": "Push students, cards and weak labels to the Hub.",
    "num_processes": "Number of processes (one per GPU) to launch with accelerate.",
    "accelerate_config": "Configuration of accelerate: single, ddp, fsdp, zero3, or a file.",
}


def _essential(arguments: type[ExperimentArguments]) -> dict[str, str]:
    """Returns the options that `--help` shows for a setting. Options that the setting does not have are ignored."""
    analyses = f"Analyses: {' '.join(arguments.possible_analyses)}"
    methods = (
        f"Training methods: naive, {BOOTSTRAP}, or my_method.py:NAME."
        if issubclass(arguments, GenerationArguments)
        else _ESSENTIAL["methods"]
    )
    return _ESSENTIAL | {"analyses": analyses, "methods": methods}


def run_task(
    task: str | None, argv: list[str] | None = None, *, description: str | None = None, prog: str | None = None
) -> None:
    """
    Runs the experiment of a task with the options of a command line: `w2s run TASK`, and every script of recipes/.

    Args:
        task (`str`, *optional*): The task, as in [`find_task`], of any setting. `None` is accepted only for `--help`.
        argv (`list[str]`, *optional*): The options. Defaults to the options of the process.
        description (`str`, *optional*): The first lines of `--help`. Defaults to the task and three examples.
        prog (`str`, *optional*): The command, for help and messages. Defaults to the script of the process.
    """
    try:
        definition = None if task is None else find_any_task(task)
    except ImportError as error:
        sys.exit(f"error: {error}")
    options = COMMAND_LINES["classification"] if definition is None else options_of(definition)
    args, training_args, student_config = parse_arguments(
        _describe(definition, options, prog) if description is None else description,
        None if options.demo_config is None else CONFIGS / f"{options.demo_config}.yaml",
        argv,
        options.arguments,
        options.training,
        options.real_config,
        task=None if definition is None else definition.name,
        prog=prog,
    )
    if definition is None:
        raise ValueError(
            "Got no task, expected the first word to be a task's name or the path of a Python file with a "
            "task. `w2s tasks` lists the tasks."
        )
    results = run_experiment(definition, args, training_args, student_config)
    finish(results, args, training_args)


def run_named_task(description: str) -> None:
    """
    Runs the experiment of the task that the option `--task` names, which may be of any setting.

    Args:
        description (`str`): The first lines of `--help`.
    """
    parser = CommandLine(add_help=False, lets_pass=True)
    parser.add_argument("--task", nargs="?")
    values, options = parser.parse_known_args(sys.argv[1:])
    if values.task is not None:
        try:
            is_text = isinstance(find_any_task(values.task), Task)
        except (ValueError, OSError):
            is_text = True  # the parser below reports the error
        except ImportError as error:
            sys.exit(f"error: {error}")
        if not is_text:
            return run_task(values.task, options, description=description, prog=f"{sys.argv[0]} --task {values.task}")
    args, training_args, student_config = parse_arguments(
        description, CONFIGS / "demo.yaml", experiment=AnyTaskArguments
    )
    assert isinstance(args, AnyTaskArguments) and args.task is not None
    results = run_experiment(args.task, args, training_args, student_config)
    return finish(results, args, training_args)


def _describe(task: ExperimentTask | None, options: CommandLineOptions, prog: str | None) -> str:
    """Returns the first lines of `--help` of a task: a description and examples."""
    if task is None:
        about = "a task"
    else:
        about = f"{task.name}" + (f" ({task.description.rstrip('.')})" if task.description else "")
    command, name = prog or "w2s run TASK", "TASK" if task is None else task.name
    text = (
        f"Trains a weak supervisor on {about}, strong students on its labels, and a strong ceiling on true labels. "
        "It reports their accuracies and the performance gap recovered (PGR)."
    )
    lines = [textwrap.fill(text, 98), "", "examples:"]
    if options.demo_config is not None:
        lines.append(f"  {command}    (the embedded demo: no network, no GPU, a few minutes)")
    if options.real_config is not None:
        lines.append(f"  {command} --config {options.real_config}{options.real_options}")
    lines.append(f"  {command} --weak_model gpt2 --student_model gpt2-xl --dataset_path data/{name}")
    if task is None:
        lines += [
            "",
            "TASK is a name (see `w2s tasks`) or a Python file. `w2s run TASK --help` shows its options.",
        ]
    return "\n".join(lines)


def parse_arguments(
    description: str,
    demo_config: Path | None,
    argv: list[str] | None = None,
    experiment: type[ExperimentArguments] = ClassificationArguments,
    training: type[AnyConfig] = WeakToStrongConfig,
    real_config: str | None = "single_gpu",
    announce: bool = True,
    task: str | None = None,
    prog: str | None = None,
) -> tuple[ExperimentArguments, AnyConfig, StudentConfig]:
    """
    Reads the options of an experiment. `--config` takes a file, or the name of a shipped configuration.

    Args:
        description (`str`): The first lines of `--help`.
        demo_config (`Path`, *optional*):
            The configuration for a command line without model, data and configuration. If the command line has
            options of a chain, `NAME_ladder.yaml` in the same directory is used instead, if it exists.
        argv (`list[str]`, *optional*): Defaults to the options of the process.
        experiment (`type`, *optional*, defaults to [`ClassificationArguments`]): The arguments of the experiment.
        training (`type`, *optional*, defaults to [`WeakToStrongConfig`]): The arguments of its trainer.
        real_config (`str`, *optional*, defaults to `"single_gpu"`): The configuration that messages suggest.
        announce (`bool`, *optional*, defaults to `True`): Whether to print that the demo runs. `False` for a
            cell of a sweep.
        task (`str`, *optional*):
            Name of the task, for the default of `--output_dir`: `outputs/TASK`. In the demo, the default is the name
            of the configuration, such as `outputs/demo`. Tasks that share a configuration have their name as a suffix.
        prog (`str`, *optional*): The command, for help and messages. Defaults to the script of the process.
    """
    argv = sys.argv[1:] if argv is None else argv
    parser = RecipeParser(
        (experiment, training, StudentConfig),
        prog=prog,
        configs=CONFIGS,
        description=description,
        usage="%(prog)s [options]",  # without the names of all options
        essential=_essential(experiment),
        hidden={*_REFUSED, *(name for name in _SET_BY if _is_set(name, training))},
        launch=(prog or "").startswith("w2s"),
        defaults=_defaults(demo_config),
    )
    parser.set_defaults(output_dir=_DEFAULT_OUTPUT_DIR)
    try:
        # Step 1: the options that the command line contains choose the configuration.
        command_line = parser.options_in(argv)
        # --help shows the defaults of the options. It shows the values of a configuration only if the command line
        # names it.
        config = command_line.config or (None if command_line.help else _demo_config(command_line, demo_config))
        # Step 2: the parser reads the values of all options. The fourth value is the namespace of --config.
        args, training_args, student_config, _ = parser.parse(argv, config)
        # Step 3: some defaults depend on other options.
        if training_args.output_dir == _DEFAULT_OUTPUT_DIR:
            training_args.output_dir = _default_output_dir(args, config or demo_config, task)
        if announce:  # in a sweep, --ladder is the same for all cells, and each cell has one method
            _add_bootstrap(args, command_line)
        # Step 4: these checks need several dataclasses.
        _check_models(args, real_config)
        _check_training(training_args, student_config, command_line)
        check_numbers(args, training_args, student_config)
        check_reporting(training_args.report_to)
        check_directory("--output_dir", training_args.output_dir)
    except (ValueError, OSError, ImportError) as error:
        parser.error(str(error))
    # Step 5: a message says that this is the demo.
    if args.demo:
        # Models and tables are small, so only training runs show progress bars.
        datasets.disable_progress_bars()
        transformers.utils.logging.disable_progress_bar()
        if announce and training_args.process_index == 0:
            _announce_demo(args, real_config, prog)
    return args, training_args, student_config


def _defaults(demo_config: Path | None) -> str:
    """Returns the line of `--help` about the defaults."""
    values = "`--config NAME --help` shows the values of a configuration."
    if demo_config is None:
        return values
    return (
        "Without --config, models and data, the embedded demo runs, with the values of "
        f"`--config {demo_config.stem}`. {values}"
    )


def _announce_demo(args: ExperimentArguments, real_config: str | None, prog: str | None) -> None:
    """Prints that this is the demo, and the command of the real task."""
    command = prog or sys.argv[0]
    command += f" --task {args.task}" if isinstance(args, AnyTaskArguments) else ""
    command = command if command.startswith("w2s") else f"accelerate launch {command}"
    print(
        "This is the embedded demo: generated rows, and models of at most 0.2 million parameters that are pretrained "
        f"first.\nThe real task, on one GPU:  {command} --config {real_config}",
        flush=True,
    )


def _demo_config(command_line: Namespace, demo_config: Path | None) -> Path | None:
    """
    Returns the configuration of the demo, or `None` if the command line names a model, data or a configuration. A
    chain has a separate demo, `NAME_ladder.yaml`, if it is shipped.
    """
    if demo_config is None or any(vars(command_line)[name] is not None for name in _REAL):
        return None
    # With --analyses agreement, the models of --ladder are compared and do not form a chain.
    is_ladder_chain = command_line.ladder is not None and "agreement" not in (command_line.analyses or [])
    if BOOTSTRAP in (command_line.methods or []) or is_ladder_chain:
        chain_config = demo_config.with_name(f"{demo_config.stem}_ladder.yaml")
        return chain_config if chain_config.is_file() else demo_config
    return demo_config


def _add_bootstrap(args: ExperimentArguments, command_line: Namespace) -> None:
    """Adds the method bootstrap for the models of `--ladder`. Raises `ValueError` if there are other `--methods`."""
    if command_line.ladder is None or BOOTSTRAP in args.methods_by_name or args.sizes:
        return
    if command_line.methods is not None:
        raise ValueError(
            f"Got --ladder, whose models no option uses. Add --methods {BOOTSTRAP} to train a chain of them, or "
            "--analyses agreement to compare them as students."
        )
    args.methods = [*args.methods, BOOTSTRAP]
    args.check_chain()


def _check_models(args: ExperimentArguments, real_config: str | None) -> None:
    """Raises `ValueError` if a model is missing, or if the demo's models would read real rows."""
    if args.demo:
        if args.dataset_path is not None:
            raise ValueError(
                "Got --dataset_path and the demo, whose models only know the words of generated rows. Name real "
                "models with --weak_model and --student_model, or leave --dataset_path out."
            )
        return
    missing = [f"--{name}" for name in ("weak_model", "student_model") if getattr(args, name) is None]
    if missing:
        if real_config is None:
            advice = "Name both models."
        else:
            advice = f"Name both models, or use the models of a configuration such as --config {real_config}."
            advice += " Without models, data and configuration, the demo runs."
        raise ValueError(f"Got no {' and no '.join(missing)}, expected both models. {advice}")


# These options of transformers and TRL are refused.
_REFUSED = (
    "hub_token", "model_name_or_path", "trust_remote_code", "eos_token", "pad_token", "chat_template_path",
)  # fmt: skip
# The experiment sets these trainer options for each training run. This dict maps them to the options to use instead.
_SET_BY = {"seed": "--seeds", "data_seed": "--seeds", "loss_type": "--methods", "hub_model_id": "--hub_namespace"}


def _is_set(name: str, training: type[AnyConfig]) -> bool:
    """Returns whether the experiment sets an option of a trainer. Trainers of TRL have another `loss_type`."""
    return name in _SET_BY and (name != "loss_type" or issubclass(training, LossArguments))


def _check_training(training_args: AnyConfig, student_config: StudentConfig, command_line: Namespace) -> None:
    """Raises `ValueError` if an option of the trainer or the student contradicts another option."""
    for item in fields(training_args):
        name, value = item.name, getattr(training_args, item.name)
        if _is_set(name, type(training_args)) and (vars(command_line)[name] is not None or value != item.default):
            raise ValueError(f"--{name}: got {value}, which is set by {_SET_BY[name]}. Use {_SET_BY[name]}.")
    if training_args.hub_token is not None:
        raise ValueError("Got --hub_token, which other users can read in the list of processes. Set HF_TOKEN instead.")
    if student_config.lora_dropout and training_args.disable_dropout:
        raise ValueError(
            f"Got --lora_dropout {student_config.lora_dropout} and --disable_dropout true, which sets all dropout to "
            "0. Set --disable_dropout false."
        )
    if training_args.push_to_hub and get_token() is None:
        raise ValueError("Got --push_to_hub without a token. Set HF_TOKEN, or log in with `hf auth login`.")


# These are the smallest values of options. transformers, peft and torch accept smaller values, or refuse them only
# during training.
_AT_LEAST = {
    "per_device_train_batch_size": 1, "per_device_eval_batch_size": 1, "gradient_accumulation_steps": 1, "lora_r": 1,
    "lora_alpha": 1, "learning_rate": 0, "weak_learning_rate": 0, "weight_decay": 0, "weak_weight_decay": 0,
    "num_train_epochs": 0, "weak_num_train_epochs": 0, "split_seed": 0,
}  # fmt: skip


def check_numbers(*arguments: ExperimentArguments | AnyConfig | StudentConfig) -> None:
    """Raises `ValueError` if a number of rows or steps, or a rate, is too small."""
    values = {name: value for part in arguments for name, value in vars(part).items()}
    for name, smallest in _AT_LEAST.items():
        if values[name] is not None and not values[name] >= smallest:  # this condition refuses NaN, too
            raise ValueError(f"--{name}: got {values[name]}, expected at least {smallest}.")
    if values["max_steps"] == 0:
        raise ValueError("--max_steps: got 0, expected a positive number of steps, or -1 to train --num_train_epochs.")
    wrong = [seed for seed in values["seeds"] if not 0 <= seed < 2**32]
    if wrong:
        raise ValueError(f"--seeds: got {wrong[0]}, expected integers from 0 to {2**32 - 1}.")


def check_reporting(report_to: list[str]) -> None:
    """Raises `ValueError` if a tracker of `--report_to` is unknown or not installed."""
    installed = get_available_reporting_integrations()
    missing = [name for name in report_to if name not in installed]
    if missing:
        raise ValueError(
            f"--report_to: got {missing[0]}, which is unknown or not installed, expected none or "
            f"installed trackers ({', '.join(installed) or 'there are none'}). Install it, or set --report_to none."
        )


def check_directory(option: str, path: str) -> None:
    """Raises `ValueError` if nothing can be written below `path`."""
    if not path.strip():
        raise ValueError(f"{option}: got an empty name, expected a directory. `.` is the current directory.")
    directory = Path(path).absolute()
    existing = next(place for place in (directory, *directory.parents) if place.exists())
    if not existing.is_dir():
        raise ValueError(f"{option}: got {path!r}, and {existing.name!r} is a file. Name another directory.")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise ValueError(f"{option}: got {path!r}, and {str(existing)!r} is not writable. Name another directory.")


def _default_output_dir(args: ExperimentArguments, config: Path | None, task: str | None) -> str:
    """Returns the default output directory, which differs between tasks."""
    if isinstance(args, AnyTaskArguments) and args.task is not None:
        task = find_task(args.task).name
    name = task or "experiment"
    if args.demo and config is not None:
        name = config.stem if task is None or task in _TASKS_OF_DEMOS else f"{config.stem}_{task}"
    return "outputs/" + re.sub(r"[^\w.-]+", "-", name)


def finish(results: ExperimentResult | dict, args: ExperimentArguments, training_args: AnyConfig) -> None:
    """Prints the final table on rank 0 and, with `--push_to_hub`, pushes the students."""
    if training_args.process_index:
        return
    print_table(results, training_args.output_dir)
    if training_args.push_to_hub:
        private = True if args.hub_private else training_args.hub_private_repo
        push_students(training_args.output_dir, namespace=args.hub_namespace, private=private)
