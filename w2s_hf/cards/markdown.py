"""Renders Markdown from templates. Values are escaped, so that they cannot become markup."""

import re
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from ..metrics import rounded

__all__ = ["Markup", "as_text", "markdown_table", "render"]

# The pattern matches everything except plain text, which is letters, digits and some punctuation. `_` within a word,
# `:` outside an address and a single brace are plain text, too.
_MARKUP = re.compile(
    r"[^\w\s.,:;?!/()'%=+{}-]|(?<!\w)_|_(?!\w)|(?<=_)_|:(?=//)|(?<=\bwww)\.|\{(?=[{%#])|(?<=\{)\{|(?<=[%#}])\}|\}(?=\})",
    re.IGNORECASE,
)


def as_text(value: object) -> Markup:
    """
    Returns a value as text for the middle of a line of Markdown.

    The text is one line. Characters that could be markup or HTML become character references, which CommonMark never
    reads as structure. Some renderers still turn a bare address into a link to that address. [`Markup`] is returned
    unchanged.
    """
    if isinstance(value, Markup):
        return value
    line = re.sub(r"[\s\x00-\x1f\x7f]+", " ", str(value))
    return Markup(_MARKUP.sub(lambda match: f"&#{ord(match[0])};", line))


_ENVIRONMENT = Environment(
    loader=FileSystemLoader(Path(__file__).parent / "templates"),
    finalize=as_text,  # applied to every value in a template
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
    keep_trailing_newline=True,
)
_ENVIRONMENT.filters["rounded"] = rounded


def render(template: str, **values: object) -> str:
    """Renders a template of this package. Values that are not [`Markup`] are escaped by [`as_text`]."""
    text = _ENVIRONMENT.get_template(template).render(**values)
    return re.sub(r"\n{3,}", "\n\n", text)


def markdown_table(header: list[str], rows: list[list[str]]) -> str:
    """
    Returns a table in Markdown.

    In cells that are not [`Markup`], only `|` and HTML are escaped, because reports are also read as plain text.
    """

    def cell(text: str) -> str:
        if isinstance(text, Markup):
            return text
        return " ".join(text.split()).replace("&", "&amp;").replace("<", "&lt;").replace("|", "&#124;")

    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(map(cell, line)) + " |" for line in lines)
