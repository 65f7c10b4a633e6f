"""Reads `--config`, a YAML file of option values, with the types and choices of the options. Formats `--help`."""

import argparse
import shutil
import textwrap
import typing
from argparse import RawDescriptionHelpFormatter
from collections.abc import Collection, Iterable, Mapping, Sequence
from copy import copy
from dataclasses import fields
from enum import Enum
from pathlib import Path

import yaml
from transformers import TrainingArguments
from trl import TrlParser

from ..command_line import CommandLine, did_you_mean
from ..config import LossArguments
from ..launch import config_file, config_names

__all__ = ["RecipeParser", "config_file"]


class _HelpFormatter(RawDescriptionHelpFormatter):
    """Shows every option once, with the kind of its value and its default. Keeps line breaks of the description."""

    def __init__(self, prog: str, **kwargs):
        super().__init__(prog, max_help_position=30, **kwargs)

    def _format_action_invocation(self, action: argparse.Action) -> str:
        if not action.option_strings:
            return super()._format_action_invocation(action)
        names = [name for name in action.option_strings if not name.startswith("--")]
        names += [name for name in action.option_strings if name.startswith("--")][:1]  # --a_b, not --a-b
        value = self._format_args(action, str(action.metavar))
        return f"{', '.join(names)} {value}".rstrip()

    def _format_args(self, action: argparse.Action, default_metavar: str) -> str:
        if action.nargs not in ("?", "+"):
            return super()._format_args(action, default_metavar)
        return f"{action.metavar} ..." if action.nargs == "+" else str(action.metavar)

    def _get_help_string(self, action: argparse.Action) -> str:
        text = action.help or ""
        choices = list(map(str, action.choices or ()))
        if action.metavar == "NAME" and not all(name in text for name in choices):
            text = f"{text.rstrip('.')}. One of {', '.join(choices)}."
        default = _as_words(action.default)
        return f"{text} (default: {default})" if default else text


def _takes_value(action: argparse.Action) -> bool:
    """Returns whether an option has a value: `--use_peft`, but not `--no_use_peft`."""
    return action.nargs != 0


def _metavar(action: argparse.Action, hint: object) -> str:
    """Returns the kind of value of an option, for help texts."""
    if action.choices is not None:
        choices = "{" + ",".join(map(str, action.choices)) + "}"
        return choices if len(choices) < 30 else "NAME"
    kinds = {typing.get_origin(hint), hint, *typing.get_args(hint)}
    kinds |= {part for kind in typing.get_args(hint) for part in typing.get_args(kind)}  # int, in list[int] | None
    if str in kinds or dict in kinds:
        return "TEXT"
    return next((name for kind, name in ((bool, "BOOL"), (int, "N"), (float, "X")) if kind in kinds), "TEXT")


def _as_words(value: object) -> str:
    """Returns a default as it is written on the command line, or an empty string if the option is unset."""
    if isinstance(value, Enum):
        value = value.value
    if value is None or value is argparse.SUPPRESS or value in ("", [], {}):
        return ""
    if isinstance(value, bool):
        return str(value).lower()
    words = " ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
    return words.replace("%", "%%")


class _ShowHelp(argparse.Action):
    """Prints the most important options (`--help`) or all options (`--help all`), and ends the process."""

    def __call__(self, parser, namespace, values, option_string=None):
        if values not in (None, "all"):
            parser.error(f"Got {option_string} {values}, expected {option_string} or {option_string} all.")
        print(parser.format_all() if values == "all" else parser.format_help(), end="")
        parser.exit()


class _OptionParser(CommandLine, TrlParser):
    """A [`CommandLine`] whose options are the fields of dataclasses."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        for action in self._actions:
            if action.dest == "report_to":  # transformers' parser accepts only one tracker
                action.nargs = "+"


class RecipeParser(_OptionParser):
    """
    A [`~trl.TrlParser`] with an option `--config` whose values are checked like values of the command line.

    A command line is read twice. First, [`options_in`][RecipeParser.options_in] returns the options that it contains,
    and the caller chooses a configuration. Then [`parse`][RecipeParser.parse] returns the values of all options.

    Args:
        dataclass_types (sequence of `type`): As in [`~trl.TrlParser`].
        configs (`Path`): The directory of the shipped configurations, which `--config` takes by name.
        description (`str`): The first lines of `--help`.
        essential (mapping, *optional*):
            The options that `--help` shows, in this order, each with a short help text. Options that the command line
            does not have are left out. Without the mapping, `--help` shows all options.
        hidden (collection of `str`, *optional*): Options that are left out of all help texts, because they
            are refused.
        launch (`bool`, *optional*): Whether help texts show the options of the launch, which the command `w2s` reads.
        defaults (`str`, *optional*): The line of `--help` about the defaults, if no configuration is chosen.
        kwargs: As in [`~argparse.ArgumentParser`] and [`CommandLine`].
    """

    def __init__(
        self,
        dataclass_types: Sequence[type],
        *,
        configs: Path,
        essential: Mapping[str, str] | None = None,
        hidden: Collection[str] = (),
        launch: bool = False,
        defaults: str = "",
        **kwargs,
    ):
        super().__init__(dataclass_types=dataclass_types, formatter_class=_HelpFormatter, add_help=False, **kwargs)
        self.listing = "--help all" if essential is not None else "--help"
        self.configs, self.essential, self.hidden = configs, essential, hidden
        self.defaults = defaults
        self._file: Path | None = None
        self._general = [
            self.add_argument(
                "-h",
                "--help",
                nargs="?",
                metavar="all",
                action=_ShowHelp,
                default=argparse.SUPPRESS,
                help="Show the most important options and exit. With `--help all`, show all options and exit.",
            ),
            self.add_argument(
                "--config",
                metavar="NAME",
                help="YAML file of option values, or the name of a shipped configuration: "
                f"{', '.join(config_names(configs))}. Options of the command line take precedence.",
            ),
        ]
        for kind in dataclass_types:
            hints = typing.get_type_hints(kind)
            for action in filter(_takes_value, self._actions):
                if action.dest in hints and action.metavar is None:
                    action.metavar = _metavar(action, hints[action.dest])
        # The command w2s reads these options before this parser, which only adds them to --help.
        shown = CommandLine(add_help=False)
        launch_actions = [
            shown.add_argument(
                "--num_processes",
                metavar="N",
                type=int,
                help="Number of processes, one per GPU, that accelerate launches on this machine.",
            ),
            shown.add_argument(
                "--accelerate_config",
                metavar="NAME",
                help="Configuration with which accelerate launches the run: single, ddp, fsdp, zero3, or a file of "
                "`accelerate config`.",
            ),
        ]
        known = {action.dest for action in self._actions}
        self._launch = [action for action in launch_actions if launch and action.dest not in known]

    @property
    def options(self) -> list[str]:
        """The names of the options, with underscores and without dashes in front."""
        return [*super().options, *(action.dest for action in self._launch)]

    def _shown(self) -> dict[str, argparse.Action]:
        """The options that help texts may show, by name; `--no_NAME` is left out."""
        actions = {}
        for action in [*self._actions, *self._launch]:
            if action.help is not argparse.SUPPRESS and _takes_value(action) and action.dest not in self.hidden:
                actions[action.dest] = action
        return actions

    def _defaults_line(self) -> str:
        return f"The defaults are the values of {self._file.name}." if self._file is not None else self.defaults

    def format_help(self) -> str:
        """Returns the text of `--help`: the most important options."""
        if self.essential is None:
            return self.format_all()
        shown = self._shown()
        actions = []
        for name, text in self.essential.items():
            if name in shown:
                action = copy(shown[name])
                action.help = text
                actions.append(action)
        last = [f"Configurations: {', '.join(config_names(self.configs))}."]
        last.append(f"--help all explains all {len(shown)} options.")
        return self._format({"options": actions}, last)

    def format_all(self) -> str:
        """Returns the text of `--help all`: every option once."""
        shown = self._shown()
        sections: dict[str, list[argparse.Action]] = {"general": [*self._general, *self._launch]}
        own: list[argparse.Action] = []
        inherited: list[argparse.Action] = []
        of_losses = {item.name for item in fields(LossArguments)}
        of_transformers = {item.name for item in fields(TrainingArguments)}
        for kind in self.dataclass_types:
            names = [item.name for item in fields(kind) if item.name in shown]
            if issubclass(kind, TrainingArguments):
                names.sort(key=lambda name: name not in of_losses)
                own += [shown[name] for name in names if name not in of_transformers]
                for name in filter(of_transformers.__contains__, names):
                    action = copy(shown[name])
                    action.help = (self.essential or {}).get(name, action.help)
                    inherited.append(action)
            elif names:
                sections[getattr(kind, "_argument_group_name", kind.__name__)] = [shown[name] for name in names]
        if own:
            sections |= {"losses and trainer": own, "training (transformers.TrainingArguments)": inherited}
        return self._format(sections, [])

    def _format(self, sections: Mapping[str, Iterable[argparse.Action]], last: list[str]) -> str:
        width = shutil.get_terminal_size().columns - 2  # as in argparse
        formatter = _HelpFormatter(self.prog)
        formatter.add_usage(self.usage, self._actions, [])
        formatter.add_text(self.description)
        for number, (title, actions) in enumerate(sections.items()):
            formatter.start_section(title)
            if number == 0 and self._defaults_line():
                formatter.add_text(textwrap.fill(self._defaults_line(), width - 2))
            formatter.add_arguments(actions)
            formatter.end_section()
        formatter.add_text("\n".join(textwrap.fill(line.strip(), width) for line in last))
        return formatter.format_help()

    def options_in(self, args: Sequence[str]) -> argparse.Namespace:
        """
        Reads the options that a command line contains. Unknown options are left to `parse`.

        Returns:
            `argparse.Namespace`: The value of every option, and `None` for an option that the command line does not
            contain. `config` is the path of the configuration, and `help` is true if the command line has `--help`.

        Raises:
            ValueError: `--config` occurs twice or without a value.
            FileNotFoundError: The configuration does not exist.
        """
        parser = _OptionParser(self.dataclass_types, prog=self.prog, usage=self.usage, add_help=False, lets_pass=True)
        parser.add_argument("--config", nargs="?", const="", action="append")
        parser.add_argument("-h", "--help", nargs="?", const=True)
        # argparse sets the default of an option only if the namespace has no value yet.
        absent = argparse.Namespace(**{action.dest: None for action in parser._actions})
        command_line, _ = parser.parse_known_args(args, absent)
        if command_line.config is not None:
            if len(command_line.config) > 1:
                raise ValueError(
                    f"--config: got {len(command_line.config)} configurations, expected one. Merge them into one file."
                )
            if not command_line.config[0]:
                raise ValueError("--config: got nothing, expected a YAML file or the name of a shipped configuration.")
            command_line.config = config_file(command_line.config[0], self.configs, "--config")
        return command_line

    def parse(self, args: Sequence[str], config: Path | None, **kwargs) -> tuple:
        """
        Reads the values of all options: from the command line, else from the configuration, else the defaults.

        Args:
            args (sequence of `str`): The command line.
            config (`Path`, *optional*): The configuration, which replaces the value of `--config`.
            kwargs: As in [`~trl.TrlParser.parse_args_and_config`].

        Returns:
            `tuple`: As in [`~trl.TrlParser.parse_args_and_config`]. A namespace with `config` follows the
            dataclasses.

        Raises:
            ValueError: The file is not a YAML mapping. A key occurs twice or is unknown. A value has a wrong type.
        """
        if config is not None:
            check_mapping(config)
            self._file = config
            args = ["--config", str(config), *args]  # TRL's parser reads and removes the first `--config`
        return self.parse_args_and_config(args, **kwargs)

    def set_defaults_with_config(self, **values) -> list[str]:
        """Sets defaults as [`~trl.TrlParser`] does, but checks keys and values. `None` leaves an option unset."""
        # `--no_NAME` shares its destination with `--NAME` and has no type.
        shown = [action for action in self._actions if action.help is not argparse.SUPPRESS]
        actions = {action.dest: action for action in shown if action.type is not None}
        hints: dict[str, typing.Any] = {}
        for kind in self.dataclass_types:
            hints |= typing.get_type_hints(kind)
        unknown = [key for key in values if key not in actions]
        if unknown:
            # A sweep accepts unknown options on its command line, and passes them to its cells.
            where = (
                " of a grid. Options of all cells belong on the command line, or in a second file, --cell_config."
                if self.lets_pass
                else f". {self.listing} lists all options."
            )
            hint = did_you_mean(unknown[0].replace("-", "_"), actions)
            raise ValueError(f"{self._file}: got {unknown[0]!r}, which is not an option{where}{hint}")
        for key in values.keys() & actions.keys():
            values[key] = self._converted(actions[key], hints[key], values[key])
        return super().set_defaults_with_config(**values)

    def _converted(self, action: argparse.Action, hint: type, value):
        """Converts a value of the file to the type of its option, as the command line does."""
        kinds = {typing.get_origin(part) or part for part in typing.get_args(hint)} | {typing.get_origin(hint), hint}
        if value is None or isinstance(value, dict | list) and action.nargs != "+" and type(value) in kinds:
            return value
        is_bool = bool in kinds
        read = action.type if callable(action.type) else str  # argparse does the same

        def convert(word):
            try:
                converted = read(str(word))
                if (
                    isinstance(word, dict | list)
                    or (isinstance(word, bool) and not is_bool)
                    or (action.choices is not None and converted not in action.choices)
                ):
                    raise ValueError
            except (ValueError, TypeError, argparse.ArgumentTypeError) as error:
                expected = f"one of {', '.join(map(str, action.choices))}" if action.choices else _kind_of(kinds)
                message = f"{self._file}: {action.dest}: got {word!r}, expected {expected}."
                if isinstance(word, bool):
                    message += " YAML reads yes, no, on and off as true and false: put such a word in quotes."
                elif action.choices:
                    message += did_you_mean(str(word), map(str, action.choices))
                raise ValueError(message) from error
            return converted

        if action.nargs != "+":
            return convert(value)
        return [convert(word) for word in (value if isinstance(value, list) else [value])]


def _kind_of(kinds: set) -> str:
    names = {bool: "true or false", int: "an integer", float: "a number", str: "text"}
    return next((name for kind, name in names.items() if kind in kinds), "another kind of value")


class _StrictLoader(yaml.SafeLoader):
    """Refuses a key that occurs twice. YAML itself uses the last value."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        seen = set()
        for key, _ in node.value:
            if key.value in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {key.value!r} occurs twice", key.start_mark
                )
            seen.add(key.value)
        return super().construct_mapping(node, deep)


def check_mapping(file: Path) -> None:
    """Raises `ValueError` if a file is not a YAML mapping of names to values, or has a key twice."""
    try:
        content = yaml.load(file.read_text(encoding="utf-8"), _StrictLoader)  # noqa: S506, a SafeLoader
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        reason = getattr(error, "problem", None) or str(error).splitlines()[0]
        mark = getattr(error, "problem_mark", None)
        where = f" in line {mark.line + 1}" if mark else ""
        raise ValueError(
            f"{file}: got invalid YAML{where} ({reason}), expected valid YAML in UTF-8. Correct the file."
        ) from error
    if not isinstance(content, dict) or not content:
        kind = "an empty file" if content is None or content == {} else f"a {type(content).__name__}"
        raise ValueError(f"{file}: got {kind}, expected a YAML mapping: lines such as `learning_rate: 1.0e-4`.")
    wrong = [key for key in content if not isinstance(key, str)]
    if wrong:
        raise ValueError(f"{file}: got the key {wrong[0]!r}, expected the name of an option.")
