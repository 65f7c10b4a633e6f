"""Markdown from templates, in which nothing that is quoted can become markup."""

import re
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from ..metrics import rounded

__all__ = ["Markup", "as_text", "markdown_table", "render"]

# All but what is plain in the middle of a line: letters, digits and some punctuation. `_` within a word is plain, too,
# `:` unless it makes an address, and a brace that is alone.
_MARKUP = re.compile(
    r"[^\w\s.,:;?!/()'%=+{}-]|(?<!\w)_|_(?!\w)|(?<=_)_|:(?=//)|(?<=\bwww)\.|\{(?=[{%#])|(?<=\{)\{|(?<=[%#}])\}|\}(?=\})",
    re.IGNORECASE,
)


def as_text(value: object) -> Markup:
    """
    Any value as text in the middle of a line of Markdown: on one line, and what could be markup or HTML as character
    references, which CommonMark shows and never reads as structure. (Some renderers make a link of a bare address
    even so; it goes where it says.) [`Markup`] is left as it is.
    """
    if isinstance(value, Markup):
        return value
    line = re.sub(r"[\s\x00-\x1f\x7f]+", " ", str(value))
    return Markup(_MARKUP.sub(lambda found: f"&#{ord(found[0])};", line))


_ENVIRONMENT = Environment(
    loader=FileSystemLoader(Path(__file__).parent / "templates"),
    finalize=as_text,  # of every value in a template
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
    keep_trailing_newline=True,
)
_ENVIRONMENT.filters["rounded"] = rounded


def render(template: str, **values: object) -> str:
    """A template of this package with its values; those that are no [`Markup`] are quoted by [`as_text`]."""
    text = _ENVIRONMENT.get_template(template).render(**values)
    return re.sub(r"\n{3,}", "\n\n", text)


def markdown_table(header: list[str], rows: list[list[str]]) -> str:
    """
    A table in Markdown. Of a cell that is no [`Markup`] only what would end it, or be HTML, is quoted: a report is
    read as it is, too.
    """

    def cell(text: str) -> str:
        if isinstance(text, Markup):
            return text
        return " ".join(text.split()).replace("&", "&amp;").replace("<", "&lt;").replace("|", "&#124;")

    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(map(cell, line)) + " |" for line in lines)
