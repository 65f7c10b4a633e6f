"""`--config`: a YAML file of defaults, read with the types and choices of the options."""

import argparse
import typing
from argparse import ArgumentDefaultsHelpFormatter, RawDescriptionHelpFormatter
from collections.abc import Sequence
from pathlib import Path

import yaml
from trl import TrlParser

from ..command_line import CommandLine, did_you_mean

__all__ = ["RecipeParser", "config_file"]


def config_file(name: str, configs: Path, option: str) -> Path:
    """
    Finds a configuration.

    Args:
        name (`str`): A file; or the name of a shipped configuration, with or without `.yaml`.
        configs (`Path`): The directory of the shipped configurations.
        option (`str`): The option that named it, for the error.

    Raises:
        FileNotFoundError: there is neither such a file nor such a shipped configuration.
    """
    shipped = {path.stem: path for path in sorted(configs.glob("*.yaml"))}
    if Path(name).is_file():
        return Path(name)
    stem = name.removesuffix(".yaml").removesuffix(".yml")
    if stem in shipped:
        return shipped[stem]
    names = f", or one of the shipped configurations: {', '.join(shipped)}" if shipped else ""
    raise FileNotFoundError(
        f"{option}: got {name!r}, expected a YAML file (there is no such file){names}."
        + did_you_mean(Path(stem).name, shipped)
    )


class _HelpFormatter(ArgumentDefaultsHelpFormatter, RawDescriptionHelpFormatter):
    """Shows defaults beside the options, and the description as it was written."""


class _OptionParser(CommandLine, TrlParser):
    """A [`CommandLine`] whose options are the fields of dataclasses."""


_DEFAULTS = "--help shows the defaults of the demo, --config NAME --help those of a configuration."


class RecipeParser(_OptionParser):
    """
    [`~trl.TrlParser`] with an option `--config` whose values are checked like those of the command line. A command
    line is read twice: [`given`][RecipeParser.given] returns the options that it contains, from which the caller
    chooses a configuration, and [`parse`][RecipeParser.parse] returns the values of all options.

    Args:
        dataclass_types (sequence of `type`): As in [`~trl.TrlParser`].
        configs (`Path`): The directory of the shipped configurations, which `--config` takes by name.
        description (`str`): The first lines of `--help`. A line about the defaults follows them.
        kwargs: As in [`~argparse.ArgumentParser`] and [`CommandLine`].
    """

    def __init__(self, dataclass_types: Sequence[type], *, configs: Path, description: str = "", **kwargs):
        description = f"{description.rstrip()}\n\n{_DEFAULTS}"
        super().__init__(
            dataclass_types=dataclass_types, description=description, formatter_class=_HelpFormatter, **kwargs
        )
        self.configs = configs
        self._file: Path | None = None
        names = ", ".join(path.stem for path in sorted(configs.glob("*.yaml")))
        self.add_argument(
            "--config",
            metavar="FILE",
            help=f"YAML file of defaults, or the name of a shipped one: {names}. The command line wins.",
        )

    def given(self, args: Sequence[str]) -> argparse.Namespace:
        """
        Reads the options that a command line contains. `--help` and unknown options are left to `parse`.

        Returns:
            `argparse.Namespace`: The value of every option, and `None` for an option that is not given. `config` is
            the path of the configuration.

        Raises:
            ValueError: `--config` is given twice or without a file.
            FileNotFoundError: there is no such configuration.
        """
        parser = _OptionParser(self.dataclass_types, usage=self.usage, add_help=False, lets_pass=True)
        parser.add_argument("--config", nargs="?", const="", action="append")
        # argparse sets the default of an option only where the namespace has no value yet.
        absent = argparse.Namespace(**{action.dest: None for action in parser._actions})
        given, _ = parser.parse_known_args(args, absent)
        if given.config is not None:
            if len(given.config) > 1:
                raise ValueError(
                    f"--config: got {len(given.config)} configurations, expected one. Merge them into one file."
                )
            if not given.config[0]:
                raise ValueError("--config: got nothing, expected a YAML file or the name of a shipped configuration.")
            given.config = config_file(given.config[0], self.configs, "--config")
        return given

    def parse(self, args: Sequence[str], config: Path | None, **kwargs) -> tuple:
        """
        Reads the values of all options: from the command line, else from the configuration, else the defaults.

        Args:
            args (sequence of `str`): The command line.
            config (`Path`, *optional*): The configuration, whatever `--config` says.
            kwargs: As in [`~trl.TrlParser.parse_args_and_config`].

        Returns:
            `tuple`: As in [`~trl.TrlParser.parse_args_and_config`]. After the dataclasses comes a namespace with
            `config`.

        Raises:
            ValueError: The file is no YAML mapping, has a key twice, a key that is no option, or a value of another
                type than its option.
        """
        if config is not None:
            check_mapping(config)
            self._file = config
            args = ["--config", str(config), *args]  # TRL's parser reads and removes the first one
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
            # The one command line that lets unknown options pass is that of a sweep, to its cells.
            where = (
                " of a grid; those of the cells go into a file of their own, --cell_config, or on the command line."
                if self.lets_pass
                else "; --help lists them."
            )
            hint = did_you_mean(unknown[0].replace("-", "_"), actions)
            raise ValueError(f"{self._file}: got {unknown[0]!r}, which is no option{where}{hint}")
        for key in values.keys() & actions.keys():
            values[key] = self._converted(actions[key], hints[key], values[key])
        return super().set_defaults_with_config(**values)

    def _converted(self, action: argparse.Action, hint: type, value):
        """Returns a value of the file as the command line would have read it."""
        kinds = {typing.get_origin(part) or part for part in typing.get_args(hint)} | {typing.get_origin(hint), hint}
        if value is None or isinstance(value, dict | list) and action.nargs != "+" and type(value) in kinds:
            return value
        is_bool = bool in kinds
        read = action.type if callable(action.type) else str  # what argparse does without a type

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
    """Refuses a key that occurs twice, of which YAML would take the last value."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        seen = set()
        for key, _ in node.value:
            if key.value in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"got the key {key.value!r} twice, expected it once", key.start_mark
                )
            seen.add(key.value)
        return super().construct_mapping(node, deep)


def check_mapping(file: Path) -> None:
    """Raises `ValueError` where a file is no YAML mapping of names to values, or has a key twice."""
    try:
        content = yaml.load(file.read_text(encoding="utf-8"), _StrictLoader)  # noqa: S506, a SafeLoader
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        reason = getattr(error, "problem", None) or str(error).splitlines()[0]
        mark = getattr(error, "problem_mark", None)
        where = f" in line {mark.line + 1}" if mark else ""
        raise ValueError(f"{file}: got a file that cannot be read as YAML{where}: {reason}.") from error
    if not isinstance(content, dict) or not content:
        kind = "an empty file" if content is None or content == {} else f"a {type(content).__name__}"
        raise ValueError(f"{file}: got {kind}, expected a YAML mapping: lines such as `learning_rate: 1.0e-4`.")
    wrong = [key for key in content if not isinstance(key, str)]
    if wrong:
        raise ValueError(f"{file}: got the key {wrong[0]!r}, expected the name of an option.")
