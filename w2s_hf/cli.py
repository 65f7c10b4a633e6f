"""The command `w2s`. Only the subcommand that runs imports torch and transformers, which takes up to ten seconds."""

import os
import sys
from collections.abc import Callable

from .command_line import CommandLine, did_you_mean
from .experiments.console import STOPPED, quiet_libraries, run_recipe
from .launch import CONFIGS, config_file, launch, split_launch

__all__ = ["main", "recipe", "sweep"]

_HELP = """\
usage: w2s COMMAND [options]

Weak-to-strong generalization: train a strong student on the labels of a weak supervisor.

commands:
  run TASK              run one experiment: supervisor, students, ceiling and PGR of a task
  sweep                 run a grid of tasks, supervisors, students, methods and seeds
  tasks                 list the tasks
  memory MODEL          estimate the GPU memory of a training run, from the config.json of a model
  publish DIRECTORY     push the students of a finished run to the Hub
  leaderboard STUDENT   print a table of PGR, read from the model cards of students
  leak-probe            check whether superficial features of a task's texts predict its labels

examples:
  w2s run boolq                        the embedded demo: no network, no GPU, two minutes
  w2s run boolq --config single_gpu    the real task, on one GPU of 24 GB
  w2s memory Qwen/Qwen2.5-7B --gpus 1x24

options:
  -h, --help            print this text; `w2s COMMAND --help` prints the options of a command
  --version             print the version
"""


def main(argv: list[str] | None = None) -> int | None:
    """
    Runs a command line.

    Args:
        argv (`list[str]`, *optional*): The arguments after `w2s`. Defaults to the arguments of the process.

    Returns:
        `int`, *optional*: The exit code; `None` is success.
    """
    argv = sys.argv[1:] if argv is None else argv
    if not argv or _asks_for_help(argv[:1]):
        print(_HELP, end="")
        return 0
    if argv[0] == "--version":
        print(f"w2s_hf {sys.modules['w2s_hf'].__version__}")
        return 0
    command, *options = argv
    if command not in _COMMANDS:
        parser = CommandLine("w2s", usage="w2s COMMAND [options]")
        hint = did_you_mean(command, _COMMANDS) or " `w2s --help` explains them."
        parser.error(f"Got {command!r}, expected one of {', '.join(_COMMANDS)}.{hint}")
    quiet_libraries()
    try:
        return _COMMANDS[command](options)
    except KeyboardInterrupt:  # `run` and `sweep` print how to continue; other commands cannot be resumed
        return STOPPED


def _say_loading(what: str = "torch, transformers and peft") -> None:
    """Prints the name of the module that is imported, on the first rank."""
    if os.environ.get("RANK", "0") == "0" and "peft" not in sys.modules:
        print(f"Loading {what} ...", file=sys.stderr, flush=True)


def _asks_for_help(argv: list[str]) -> bool:
    return any(word in ("-h", "--help") or word.startswith("--help=") for word in argv)


# ---- Experiments: `w2s run`, `w2s sweep` and the scripts in recipes/ ----


def _run(argv: list[str]) -> int | None:
    if (not argv or argv[0].startswith("-")) and not _asks_for_help(argv):
        parser = CommandLine("w2s run", usage="w2s run TASK [options]")
        first = f"{argv[0]} before the task" if argv else "no task"
        parser.error(
            f"Got {first}, expected the first word to be a task's name or the path of a Python file with a "
            "task. `w2s tasks` lists the tasks. `w2s run boolq` runs the embedded demo."
        )
    task = None if argv[0].startswith("-") else argv[0]
    prog = f"w2s run {task or 'TASK'}"
    launch_options, options = split_launch(argv[1:] if task else argv, prog)
    if launch_options is not None and not _asks_for_help(argv):
        return launch(launch_options, ["run", argv[0], *options])

    def load() -> Callable[[], object]:
        _say_loading()
        from .experiments.cli import run_task

        return lambda: run_task(task, options, prog=prog)

    run_recipe(load)
    return None


def recipe(task: str | None, description: str) -> None:
    """
    Runs a script of recipes/: one experiment with the options of this process.

    Args:
        task (`str`, *optional*): Name of the task. If `None`, the option `--task` names it.
        description (`str`): The docstring of the script, for `--help`.
    """

    def load() -> Callable[[], object]:
        _say_loading()
        from .experiments.cli import run_named_task, run_task

        if task is None:
            return lambda: run_named_task(description)
        return lambda: run_task(task, sys.argv[1:], description=description)

    run_recipe(load)


def _sweep(argv: list[str]) -> int | None:
    launch_options, options = split_launch(argv, "w2s sweep", takes_config=not _is_on_ray(argv))
    if launch_options is not None and not _asks_for_help(argv):
        return launch(launch_options, ["sweep", *options])
    sweep(argv=options, prog="w2s sweep")
    return None


def sweep(description: str | None = None, argv: list[str] | None = None, prog: str | None = None) -> None:
    """
    Runs a sweep: the command `w2s sweep`, and the script recipes/sweep.py.

    Args:
        description (`str`, *optional*): The docstring of the script, for `--help`.
        argv (`list[str]`, *optional*): The command line. Defaults to the command line of the process.
        prog (`str`, *optional*): Name of the command, for `--help`. Defaults to the name of the script.
    """

    def load() -> Callable[[], object]:
        _say_loading()
        from .sweep.cli import main

        return lambda: main(description, argv, prog)

    run_recipe(load)


def _is_on_ray(argv: list[str]) -> bool:
    """Returns whether a sweep runs on a Ray cluster. `--accelerate_config` then applies to its cells."""
    parser = CommandLine("w2s sweep", add_help=False, lets_pass=True)
    parser.add_argument("--engine", nargs="?")
    parser.add_argument("--config", nargs="?")
    values, _ = parser.parse_known_args(argv)
    if values.engine is not None or values.config is None:
        return values.engine == "ray"
    import yaml

    try:
        content = yaml.safe_load(config_file(values.config, CONFIGS, "--config").read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError):
        return False  # the sweep itself reports the error
    return isinstance(content, dict) and content.get("engine") == "ray"


# ---- The other commands ----


def _tasks(argv: list[str]) -> None:
    parser = CommandLine(
        "w2s tasks",
        usage="w2s tasks [options]",
        description="Lists the names of the tasks for `w2s run` and `w2s sweep`. A custom task is a Python file: "
        "`w2s run my_task.py`.",
    )
    parser.add_argument("--sources", action="store_true", help="also print the splits and the datasets on the Hub")
    args = parser.parse_args(argv)
    _say_loading("datasets")
    from .tasks import task_table

    print(task_table(args.sources))


def _memory(argv: list[str]) -> None:
    _say_loading()
    from .memory.__main__ import main

    main(argv)


def _publish(argv: list[str]) -> None:
    _say_loading("huggingface_hub and pandas")
    from .publish import main

    main(argv)


def _leaderboard(argv: list[str]) -> None:
    _say_loading("torch and pandas")
    from .leaderboard import main

    main(argv)


def _leak_probe(argv: list[str]) -> int:
    _say_loading("datasets and scikit-learn")
    from .tasks.leak_probe import main

    return main(argv)


_COMMANDS: dict[str, Callable[[list[str]], int | None]] = {
    "run": _run,
    "sweep": _sweep,
    "tasks": _tasks,
    "memory": _memory,
    "publish": _publish,
    "leaderboard": _leaderboard,
    "leak-probe": _leak_probe,
}
