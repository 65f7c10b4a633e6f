"""The parser of all command lines of the package. It accepts no abbreviated options, and suggests known words."""

import argparse
import difflib
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

__all__ = ["CommandLine", "HelpFormatter", "did_you_mean", "did_you_mean_path"]

_DASHES = ("-", "\u2013", "\u2014")  # word processors replace hyphens with these dashes


def did_you_mean(word: str, known: Iterable[str], form: str = "{!r}") -> str:
    """
    Suggests known words for an unknown word.

    Args:
        word (`str`): The unknown word, such as an option without its dashes.
        known (iterable of `str`): The known words.
        form (`str`, *optional*): The format of a known word, such as `"--{}"` for an option. Defaults to
            quotation marks.

    Returns:
        `str`: A sentence that begins with a space, such as `" Did you mean 'naive'?"`, or an empty string if no known
        word resembles the unknown word.
    """
    known = list(dict.fromkeys(known))
    # The initials of an option (`lr`) or a part of its name (`epochs`) match better than similar spelling.
    initials = [name for name in known if "_" in name and "".join(part[:1] for part in name.split("_")) == word]
    longer = sorted(name for name in known if len(word) > 3 and word.lower() in name.lower())
    longer.sort(key=lambda name: (not name.startswith(word), len(name)))
    close = initials or longer[:3] or difflib.get_close_matches(word, known, n=2)
    return f" Did you mean {' or '.join(map(form.format, close))}?" if close else ""


def did_you_mean_path(path: str, *, only_directories: bool = False) -> str:
    """Suggests files or directories beside a path that does not exist. Expands `~`. See [`did_you_mean`]."""
    full = Path(os.path.expanduser(path)).absolute()
    if path.startswith("~") and full.exists():
        return f" Did you mean {str(full)!r}?"
    if not (full.parent.is_dir() and os.access(full.parent, os.R_OK | os.X_OK)):
        return ""
    known = sorted(entry.name for entry in full.parent.iterdir() if entry.is_dir() or not only_directories)
    return did_you_mean(full.name, known)


class HelpFormatter(argparse.RawDescriptionHelpFormatter):
    """Shows the defaults of options that have a value, and keeps the line breaks of the description."""

    def _get_help_string(self, action: argparse.Action) -> str:
        text = action.help or ""
        is_shown = action.default not in (None, False, [], argparse.SUPPRESS) and "(default" not in text
        return f"{text} (default: %(default)s)" if is_shown else text


class CommandLine(argparse.ArgumentParser):
    """
    An [`~argparse.ArgumentParser`] that reads no abbreviations (`--method` is not read as `--methods`), and suggests
    options and choices for misspelt names.

    Args:
        args, kwargs: The arguments of [`~argparse.ArgumentParser`].
        lets_pass (`bool`, *optional*, defaults to `False`):
            `parse_known_args` returns unknown options instead of refusing them.

    Attributes:
        listing (`str`): The option that lists all options, for error messages.
    """

    listing = "--help"

    def __init__(self, *args, lets_pass: bool = False, **kwargs):
        self.lets_pass = lets_pass
        kwargs["allow_abbrev"] = False
        super().__init__(*args, **kwargs)

    @property
    def options(self) -> list[str]:
        """The names of the options that have a help text, with underscores and without leading dashes."""
        # Only this attribute of the parser lists all options (checked with Python 3.11 to 3.14).
        public = [action for action in self._actions if action.help is not argparse.SUPPRESS]
        names = [name for action in public for name in action.option_strings if name.startswith("--")]
        return list(dict.fromkeys(name[2:].replace("-", "_") for name in names))

    def parse_known_args(self, args: Iterable[str] | None = None, namespace: Any = None) -> tuple[Any, list[str]]:
        """Parses like [`~argparse.ArgumentParser`], and refuses unknown options unless `lets_pass` is set."""
        namespace, unknown = super().parse_known_args(args, namespace)
        if unknown and not self.lets_pass:
            named = [word for word in unknown if word.startswith(_DASHES)] or unknown[:1]
            self.error(" ".join(self.unknown(word) for word in named))
        return namespace, unknown

    def unknown(self, word: str) -> str:
        """Returns the error for a word of the command line that is neither an option nor the value of an option."""
        if not word.startswith(_DASHES):
            return f"Got {word}, expected an option, which begins with --. {self.listing} lists all options."
        option = word.split("=")[0]
        name = option.lstrip("".join(_DASHES)).replace("-", "_")
        suggestion = did_you_mean(name, self.options, "--{}")
        return f"Got {option}, which is not an option. {self.listing} lists all options.{suggestion}"

    def _check_value(self, action: argparse.Action, value) -> None:
        # Only this method of argparse checks choices (tested with Python 3.11 to 3.14).
        try:
            super()._check_value(action, value)
        except argparse.ArgumentError as error:
            error.message += did_you_mean(str(value), map(str, action.choices or ()))
            raise
