"""
Finds shipped configurations and launches a command through accelerate. Only the launch imports large libraries.
"""

import argparse
import os
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from .command_line import CommandLine, did_you_mean

__all__ = ["ACCELERATE_CONFIGS", "CONFIGS", "LaunchOptions", "config_file", "config_names", "launch", "split_launch"]

CONFIGS = Path(__file__).parent / "configs"
ACCELERATE_CONFIGS = Path(__file__).parent / "accelerate_configs"


def config_names(configs: Path) -> list[str]:
    """Returns the names of the configurations in a directory."""
    return sorted(path.stem for path in configs.glob("*.yaml"))


def config_file(name: str, configs: Path, option: str) -> Path:
    """
    Finds a configuration.

    Args:
        name (`str`): A file, or the name of a shipped configuration, with or without `.yaml`.
        configs (`Path`): The directory of the shipped configurations.
        option (`str`): The option with this value, for the error message.

    Raises:
        FileNotFoundError: `name` is neither a file nor a shipped configuration.
    """
    if Path(name).is_file():
        return Path(name)
    stem = name.removesuffix(".yaml").removesuffix(".yml")
    shipped = config_names(configs)
    if stem in shipped:
        return configs / f"{stem}.yaml"
    names = f", or one of the shipped configurations: {', '.join(shipped)}" if shipped else ""
    raise FileNotFoundError(
        f"{option}: got {name!r}, expected a YAML file (there is no such file){names}."
        + did_you_mean(Path(stem).name, shipped)
    )


@dataclass(frozen=True)
class LaunchOptions:
    """
    The options with which accelerate launches a command.

    Args:
        num_processes (`int`, *optional*): Number of processes. Defaults to the number in the configuration.
        accelerate_config (`str`, *optional*):
            A file written by `accelerate config`, or the name of a shipped configuration. Defaults to `single` for
            one process, and to `ddp` for several processes.
    """

    num_processes: int | None = None
    accelerate_config: str | None = None

    def arguments(self) -> list[str]:
        """
        Returns the options of `accelerate launch`.

        Raises:
            FileNotFoundError: The configuration does not exist.
            ValueError: The configuration cannot be read. It has no `distributed_type`. It starts one process, and
                `num_processes` is larger.
        """
        import yaml

        name = self.accelerate_config or ("single" if self.num_processes == 1 else "ddp")
        path = config_file(name, ACCELERATE_CONFIGS, "--accelerate_config")
        try:
            content = yaml.safe_load(path.read_text(encoding="utf-8"))
        except (yaml.YAMLError, UnicodeDecodeError):
            content = None
        if not isinstance(content, dict):
            raise ValueError(
                f"--accelerate_config: got {name!r}, expected a file of `accelerate config`. Run `accelerate config` "
                "to create one."
            )
        if (self.num_processes or 1) > 1 and content.get("distributed_type") in ("NO", False, None):
            raise ValueError(
                f"Got --num_processes {self.num_processes} and --accelerate_config {name}, which starts one process. "
                "Leave out one of these options, or set --accelerate_config ddp."
            )
        if "distributed_type" not in content:
            raise ValueError(
                f"--accelerate_config: got {name!r}, which has no distributed_type, expected a file of "
                "`accelerate config`. Options of the run belong in --config."
            )
        words = ["--config_file", str(path)]
        if self.num_processes is not None:
            words += ["--num_processes", str(self.num_processes)]
        if content.get("num_machines", 1) == 1 and content.get("main_process_port") is None:
            words += ["--main_process_port", "0"]  # any free port, so that two runs on a machine do not conflict
        return words


def split_launch(
    argv: Sequence[str], prog: str, *, takes_config: bool = True
) -> tuple[LaunchOptions | None, list[str]]:
    """
    Separates the options of the launch from a command line.

    Args:
        argv (sequence of `str`): The command line.
        prog (`str`): Name of the command, for errors.
        takes_config (`bool`, *optional*, defaults to `True`): Whether to read `--accelerate_config`. `False`
            leaves it among the remaining arguments.

    Returns:
        The options of the launch (`None` if the command runs in this process), and the remaining arguments.
    """
    parser = CommandLine(prog, usage=f"{prog} [options]", add_help=False, lets_pass=True)
    parser.add_argument("--num_processes", "--num-processes", type=_positive)
    if takes_config:
        parser.add_argument("--accelerate_config", "--accelerate-config")
    values, others = parser.parse_known_args(argv)
    if all(value is None for value in vars(values).values()):
        return None, others
    if "LOCAL_RANK" in os.environ:
        names = " and ".join(f"--{name}" for name, value in vars(values).items() if value is not None)
        parser.error(f"Got {names} in a process that a launcher has started. Give these options to the launcher.")
    return LaunchOptions(**vars(values)), others


def _positive(text: str) -> int:
    if not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError(f"got {text!r}, expected a positive integer")
    return int(text)


def launch(options: LaunchOptions, argv: Sequence[str]) -> int:
    """
    Runs `accelerate launch -m w2s_hf` with a command line, and returns the exit code.

    Args:
        options ([`LaunchOptions`]): The options of the launch.
        argv (sequence of `str`): The command line after `w2s`.
    """
    try:
        words = [*options.arguments(), "--module", "w2s_hf", *argv]
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print("Loading accelerate ...", file=sys.stderr, flush=True)
    from subprocess import CalledProcessError

    from ._compat import ChildFailedError, SignalException, launch_command, launch_command_parser

    try:
        launch_command(launch_command_parser().parse_args(words))
    except CalledProcessError as error:  # the process has printed its error
        return _exit_code(error.returncode)
    except ChildFailedError as error:
        return _exit_code(error.get_first_failure()[1].exitcode)
    except (ValueError, TypeError, OSError) as error:
        print(
            f"error: Got options that accelerate cannot start: {error}. Correct --accelerate_config and "
            "--num_processes.",
            file=sys.stderr,
        )
        return 2
    except KeyboardInterrupt:
        # Ctrl-C also stops the launched process. Its last line is printed before this process ends.
        with suppress(ChildProcessError, KeyboardInterrupt):
            while True:
                os.wait()
        return 130
    except SignalException as error:  # with several processes, torchrun raises this error after it has stopped them
        return 128 + error.sigval
    return 0


def _exit_code(code: int) -> int:
    """Returns the exit code by the convention of shells: 128 plus the signal if a signal ended the process."""
    return code if code > 0 else 128 - code
