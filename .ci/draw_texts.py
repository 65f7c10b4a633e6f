"""Draws random texts for a review of the language, and prints each text with its file and line.

    python .ci/draw_texts.py --n 100 --seed 1                      # package, recipes, results and documentation
    python .ci/draw_texts.py --n 20 --seed 1 w2s_hf/trainers       # some files or directories
    python .ci/draw_texts.py --n 100 --seed 1 --tests              # the tests
    python .ci/draw_texts.py --longer_than 24                      # all sentences of more than 24 words

A text is a docstring, a block of comments, a message, a sentence of Markdown, or a long value of a YAML file. Messages
are errors, log lines, printed lines and the help of options. Every text has the same probability. The same seed draws
the same texts if the files are the same. For notebooks, the cell number is printed instead of the line.
"""

import argparse
import ast
import io
import json
import random
import re
import tokenize
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parents[1]
DEFAULT = (
    "w2s_hf",
    "recipes",
    "notebooks",
    "results",
    "docs",
    "model_cards/README.md",
    "README.md",
    "CONTRIBUTING.md",
    "SECURITY.md",
)
_CALLS = {"debug", "info", "warning", "warning_once", "warn", "error", "critical", "exception", "exit", "print"}
_KEYWORDS = {"help", "description", "epilog"}
_DIRECTIVE = re.compile(r"#\s*(noqa|ruff:|fmt:|type:|pragma|!|-\*-)")
_SENTENCE_END = re.compile(r"(?<=[.!?:])\s+(?=[A-Z`\"(\[*])")
_FULL_STOP = re.compile(r"(?<=[.!?])\s+(?=[A-Z`\"(\[*{])")
_ARGUMENTS = r"(?:\w[\w, ]* \((?:[^()]|\([^()]*\))*\)(?:, )?)+:\s*"
_ITEM = re.compile(rf"([-*+]|\d+\.)\s+|{_ARGUMENTS}|(Args|Returns|Raises|Yields|\w+Error):\s*|`[^`]+`:\s*")
_COMMAND = re.compile(r">>> |\.\.\. |(w2s|python|accelerate|torchrun|uv|pip) ")
_ONE_WORD = re.compile(r"`+[^`]*`+|\{[^{}]*\}|https?://\S+")
_WORD = re.compile(r"[^\s/]*[A-Za-z0-9][^\s/]*")
_LINK = re.compile(r"!?\[([^\]]*)\]\([^)]*\)")


@dataclass(frozen=True)
class Text:
    """A text that a reader of the code or of the documentation sees, with its file and the line where it begins."""

    path: str
    line: int
    kind: str
    text: str


# ---- Python ----


def python_texts(source: str) -> Iterator[tuple[int, str, str]]:
    """Yields line, kind and text of the docstrings, comments and messages of a Python file."""
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            if docstring := ast.get_docstring(node):
                yield node.body[0].lineno, "docstring", docstring
        for part in message_parts(node):
            for line, message in literals(part):
                if " " in message.strip():
                    yield line, "message", message
    yield from comments(source)


def message_parts(node: ast.AST) -> Iterator[ast.AST]:
    """Yields the parts of errors, log calls, assertions and options in which all strings are texts for readers."""
    if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call):
        yield from node.exc.args
    elif isinstance(node, ast.Assert) and node.msg is not None:
        yield node.msg
    elif isinstance(node, ast.Call):
        name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
        if name in _CALLS:
            yield from node.args
        yield from (keyword.value for keyword in node.keywords if keyword.arg in _KEYWORDS)
    elif isinstance(node, ast.Dict):
        for key, value in zip(node.keys, node.values, strict=True):
            if isinstance(key, ast.Constant) and key.value == "help":
                yield value


def literals(node: ast.AST) -> Iterator[tuple[int, str]]:
    """Yields line and text of the strings in an expression. Values in an f-string are shown as code."""
    text = rendered(node)
    if text is not None:
        yield node.lineno, text
        return
    for child in ast.iter_child_nodes(node):
        yield from literals(child)


def rendered(node: ast.AST) -> str | None:
    """Returns the text of a string, an f-string or a sum of strings. Returns `None` for other code."""
    if isinstance(node, ast.Constant):
        return node.value if isinstance(node.value, str) else None
    if isinstance(node, ast.JoinedStr):
        parts = (
            str(part.value) if isinstance(part, ast.Constant) else f"{{{ast.unparse(part.value)}}}"
            for part in node.values
        )
        return "".join(parts)
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        sides = [(side, rendered(side)) for side in (node.left, node.right)]
        if any(text is not None for _, text in sides):
            return "".join(f"{{{ast.unparse(side)}}}" if text is None else text for side, text in sides)
    return None


def comments(source: str) -> Iterator[tuple[int, str, str]]:
    """Yields line, kind and text of comments. Comments on consecutive lines without code are one text."""
    tokens = [
        token
        for token in tokenize.generate_tokens(io.StringIO(source).readline)
        if token.type == tokenize.COMMENT and not _DIRECTIVE.match(token.string)
    ]

    def block(indexed: tuple[int, tokenize.TokenInfo]) -> tuple:
        index, token = indexed
        is_alone = token.line.lstrip().startswith("#")
        return ("block", token.start[0] - index) if is_alone else ("inline", index)

    for _, group in groupby(enumerate(tokens), block):
        lines = [token for _, token in group]
        yield lines[0].start[0], "comment", "\n".join(token.string.lstrip("# ").rstrip() for token in lines)


# ---- Markdown, YAML and notebooks ----


def markdown_texts(source: str) -> Iterator[tuple[int, str, str]]:
    """Yields line, kind and text of the sentences, headings and longer table cells of a Markdown file."""
    paragraph: list[tuple[int, str]] = []
    is_code = False
    for number, line in enumerate([*source.splitlines(), ""], start=1):
        stripped = line.strip()
        is_fence = stripped.startswith(("```", "~~~"))
        is_cell = stripped.startswith("|")
        starts_anew = re.match(r"([-*+]|\d+\.)\s|#|!!!|\?\?\?|<!--|\{%|---|===", stripped) is not None
        if is_fence or is_cell or is_code or starts_anew or not stripped:
            yield from sentences(paragraph)
            paragraph = []
        if is_fence:
            is_code = not is_code
        elif is_code or not stripped or stripped.startswith(("<!--", "{%", "---", "===")):
            continue
        elif is_cell:
            for cell in re.split(r"(?<!\\)\|", stripped.strip("|")):
                if len(re.findall(r"[A-Za-z]{2,}", cell)) >= 4:
                    yield number, "table cell", _LINK.sub(r"\1", cell.strip())
        else:
            paragraph.append((number, re.sub(r"^([-*+]|\d+\.|#+)\s+", "", stripped)))


def sentences(paragraph: list[tuple[int, str]]) -> Iterator[tuple[int, str, str]]:
    """Yields line, kind and text of the sentences of a paragraph, which is a list of numbered lines."""
    text, starts = "", []
    for number, line in paragraph:
        starts.append((len(text), number))
        text += line + " "
    position = 0
    for sentence in _SENTENCE_END.split(text.strip()):
        position = text.index(sentence, position)
        if sentence.strip():
            line = max(number for start, number in starts if start <= position)
            yield line, "sentence", _LINK.sub(r"\1", sentence)
        position += len(sentence)


def yaml_texts(source: str) -> Iterator[tuple[int, str, str]]:
    """Yields line, kind and text of the comments of a YAML file and of its values of at least four words."""
    lines = [
        (number, line.strip().lstrip("# "))
        for number, line in enumerate(source.splitlines(), start=1)
        if line.lstrip().startswith("#")
    ]
    for _, group in groupby(enumerate(lines), lambda indexed: indexed[1][0] - indexed[0]):
        block = [line for _, line in group]
        yield block[0][0], "comment", "\n".join(text for _, text in block)
    for number, line in enumerate(source.splitlines(), start=1):
        if match := re.match(r"[^#'\"]*\S\s+# (.+)", line):
            yield number, "comment", match[1]
    nodes = [node for node in [yaml.compose(source, Loader=yaml.SafeLoader)] if node is not None]
    while nodes:
        node = nodes.pop()
        if isinstance(node, yaml.ScalarNode):
            if len(node.value.split()) >= 4:
                yield node.start_mark.line + 1, "value", node.value.strip()
        else:
            children = (
                [part for pair in node.value for part in pair] if isinstance(node, yaml.MappingNode) else node.value
            )
            nodes.extend(children)


def notebook_texts(source: str) -> Iterator[tuple[int, str, str]]:
    """Yields cell number, kind and text of the sentences and comments of a notebook."""
    for number, cell in enumerate(json.loads(source)["cells"], start=1):
        content = "".join(cell["source"])
        texts = markdown_texts(content) if cell["cell_type"] == "markdown" else comments(content)
        yield from ((number, kind, text) for _, kind, text in texts)


_READERS = {
    ".py": python_texts, ".md": markdown_texts, ".ipynb": notebook_texts, ".yaml": yaml_texts, ".yml": yaml_texts,
}  # fmt: skip


# ---- Length of sentences ----


def long_sentences(text: str, limit: int) -> list[str]:
    """
    Returns the sentences of a text that have more than `limit` words.

    Code in backticks, a value of an f-string and an address count as one word each. Code blocks and the lines of
    commands are left out. Every item of a list and every argument of a docstring starts a new sentence.
    """
    paragraphs, is_code = [""], False
    for line in text.splitlines():
        stripped = line.strip()
        is_fence = stripped.startswith("```")
        is_code = is_code != is_fence
        if is_fence or is_code or not stripped or _COMMAND.match(stripped):
            paragraphs.append("")
        elif match := _ITEM.match(stripped):
            paragraphs.append(stripped[match.end() :])
        else:
            paragraphs[-1] += " " + stripped
    sentences = (sentence for paragraph in paragraphs for sentence in _FULL_STOP.split(paragraph.strip()))
    return [sentence for sentence in sentences if len(_WORD.findall(_ONE_WORD.sub("code", sentence))) > limit]


# ---- Files ----


def read_texts(paths: Iterable[Path], root: Path = ROOT) -> list[Text]:
    """
    Returns the texts of all Python, Markdown, YAML and notebook files, sorted by file and line. Texts that are
    repeated word for word are listed once.

    Args:
        paths (iterable of `Path`): Files, and directories whose files are read.
        root (`Path`): The directory to which the names of the files are relative.

    Raises:
        FileNotFoundError: A path does not exist.
    """
    files: set[Path] = set()
    for path in paths:
        if not path.exists():
            raise FileNotFoundError(f"Got {path}, expected a file or a directory. Give a path in {root}.")
        files.update(path.rglob("*") if path.is_dir() else [path])
    texts = [
        Text(str(file.relative_to(root)), line, kind, text)
        for file in files
        if file.suffix in _READERS and file.is_file()
        for line, kind, text in _READERS[file.suffix](file.read_text(encoding="utf-8"))
    ]
    first = {text.text: text for text in sorted(texts, key=_position, reverse=True)}
    return sorted(first.values(), key=_position)


def _position(text: Text) -> tuple:
    return text.path, text.line, text.kind, text.text


def draw(texts: list[Text], n: int, seed: int) -> list[Text]:
    """Returns `n` different texts, or all of them if there are fewer, in random order."""
    return random.Random(seed).sample(texts, min(n, len(texts)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "paths",
        nargs="*",
        type=Path,
        metavar="PATH",
        help="Files and directories from which texts are drawn (default: documentation and code without tests).",
    )
    parser.add_argument("--n", type=int, default=100, help="Number of texts to draw (default: 100).")
    parser.add_argument("--seed", type=int, default=0, help="Seed of the random choice (default: 0).")
    parser.add_argument("--tests", action="store_true", help="Draw texts of the tests instead, if no paths are given.")
    parser.add_argument(
        "--longer_than",
        type=int,
        metavar="WORDS",
        help="Draw nothing. Print all sentences with more than this number of words.",
    )
    args = parser.parse_args()
    names = ["tests"] if args.tests else DEFAULT
    texts = read_texts([path.resolve() for path in args.paths] or [ROOT / name for name in names])
    if args.longer_than is not None:
        for text in texts:
            for sentence in long_sentences(text.text, args.longer_than):
                print(f"{text.path}:{text.line}: {sentence}")
        return
    for text in draw(texts, args.n, args.seed):
        print(f"{text.path}:{text.line}: {text.kind}")
        print("\n".join(f"    {line}" for line in text.text.splitlines()), end="\n\n")
    print(f"{min(args.n, len(texts))} of {len(texts)} texts, seed {args.seed}.")


if __name__ == "__main__":
    main()
