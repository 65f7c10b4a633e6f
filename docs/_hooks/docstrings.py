"""Renders the docstrings of the package, which are in Hugging Face style, as Markdown for mkdocstrings.

Griffe loads the sources without importing them. This extension then rewrites each docstring. `Args:`, `Returns:` and
`Raises:` become lists. [`Name`] becomes a link to its entry in the reference. The options of a dataclass become a list
of their help texts.
"""

import ast
import re
from pathlib import Path

import griffe

API = Path(__file__).parents[1] / "api"
HEADINGS = {
    "Args": "Parameters", "Returns": "Returns", "Raises": "Raises", "Yields": "Yields", "Example": "Example",
    "Examples": "Examples", "Attributes": "Attributes",
}  # fmt: skip
TRANSFORMERS = "https://huggingface.co/docs/transformers/main/en/main_classes/"
EXTERNAL = {
    "transformers.Trainer": f"{TRANSFORMERS}trainer#transformers.Trainer",
    "transformers.TrainingArguments": f"{TRANSFORMERS}trainer#transformers.TrainingArguments",
    "transformers.PreTrainedModel": f"{TRANSFORMERS}model#transformers.PreTrainedModel",
    "transformers.BitsAndBytesConfig": f"{TRANSFORMERS}quantization#transformers.BitsAndBytesConfig",
    "trl.RewardTrainer": "https://huggingface.co/docs/trl/main/en/reward_trainer#trl.RewardTrainer",
    "trl.RewardConfig": "https://huggingface.co/docs/trl/main/en/reward_trainer#trl.RewardConfig",
    "trl.SFTTrainer": "https://huggingface.co/docs/trl/main/en/sft_trainer#trl.SFTTrainer",
    "trl.SFTConfig": "https://huggingface.co/docs/trl/main/en/sft_trainer#trl.SFTConfig",
    "datasets.Dataset": "https://huggingface.co/docs/datasets/main/en/package_reference/main_classes#datasets.Dataset",
    "peft.PeftModel": "https://huggingface.co/docs/peft/main/en/package_reference/peft_model#peft.PeftModel",
}
_LINK = re.compile(r"\[`([~\w.]+)`\](?![\[(])")


def documented_paths(api: Path = API) -> dict[str, str]:
    """Returns the import paths on the pages of the reference, by their last part and by the whole path."""
    paths = [
        path
        for page in sorted(api.glob("*.md"))
        for path in re.findall(r"^::: ([\w.]+)", page.read_text(encoding="utf-8"), flags=re.MULTILINE)
    ]
    return {path.rpartition(".")[2]: path for path in paths} | {path: path for path in paths}


def link(name: str, paths: dict[str, str]) -> str:
    """Returns a link to the reference or to the documentation of another library, or the name as code."""
    shown = name.rpartition(".")[2] if name.startswith("~") else name
    name = name.lstrip("~")
    if name in paths:
        return f"[`{shown}`][{paths[name]}]"
    owner, _, member = name.rpartition(".")
    if owner in paths and owner.rpartition(".")[2][:1].isupper():  # a method or attribute of a class
        return f"[`{shown}`][{paths[owner]}]"
    return f"[`{shown}`]({EXTERNAL[name]})" if name in EXTERNAL else f"`{shown}`"


def split_head(line: str) -> tuple[str, str]:
    """Splits an entry into names with types and a description, at the first colon outside of brackets and code."""
    depth, is_code = 0, False
    for index, character in enumerate(line):
        is_code ^= character == "`"
        depth += (character in "([") - (character in ")]")
        if character == ":" and not depth and not is_code:
            return line[:index], line[index + 1 :].strip()
    return "", line


def with_bold_names(head: str) -> str:
    """Returns the head of an entry with its names in bold code. Types in brackets do not change."""
    parts = re.split(r"(\((?:[^()]|\([^()]*\))*\))", head)
    return "".join(
        part if part.startswith("(") else re.sub(r"\*{0,2}\b[A-Za-z_]\w*\b", r"**`\g<0>`**", part) for part in parts
    )


def as_list(lines: list[str]) -> list[str]:
    """Returns the entries of a section as a list. Each entry has names in bold code, types and a description."""
    entries: list[list[str]] = []
    indent = min((len(line) - len(line.lstrip()) for line in lines if line.strip()), default=0)
    for line in filter(str.strip, lines):
        if len(line) - len(line.lstrip()) == indent or not entries:
            entries.append([line.strip()])
        else:
            entries[-1].append(line.strip())
    out = [""]
    for first, *further in entries:
        head, description = split_head(first)
        text = " ".join([description, *further]).strip()
        out.append(f"- {with_bold_names(head)}: {text}" if head else f"- {text}")
    return [*out, ""]


def as_markdown(text: str, paths: dict[str, str]) -> str:
    """Returns a docstring in Hugging Face style as Markdown."""
    lines, out, index = text.split("\n"), [], 0
    while index < len(lines):
        section = re.fullmatch(r"(\w+):", lines[index])
        if not section or section[1] not in HEADINGS:
            out.append(lines[index])
            index += 1
            continue
        index += 1
        body = []
        while index < len(lines) and (not lines[index].strip() or lines[index].startswith(" ")):
            body.append(lines[index])
            index += 1
        out += ["", f"**{HEADINGS[section[1]]}**", ""]
        if section[1] in ("Args", "Raises", "Attributes"):
            out += as_list(body)
        else:
            out += [line.strip() if section[1] in ("Returns", "Yields") else line[4:] for line in body] + [""]
    parts = re.split(r"(```.*?```)", "\n".join(out), flags=re.DOTALL)  # no links inside of code
    return "".join(
        part if part.startswith("```") else _LINK.sub(lambda match: link(match[1], paths), part) for part in parts
    )


def names_of_methods(page: Path = API.parent / "methods.md") -> list[str]:
    """
    Returns the keys of `METHODS` from the page that lists the methods, since the values have no literals. A test
    compares the page with the package.
    """
    tables = page.read_text(encoding="utf-8").partition("## Measured")[0]
    names = re.findall(r"^\| `(\w+)` \|", tables, flags=re.MULTILINE)
    return [name for name in names if name != "bootstrap"]


def evaluated(node: ast.expr, module: griffe.Module) -> object:
    """Returns the value of an expression of package constants, as used in the help texts of options."""
    names = {inner.id for inner in ast.walk(node) if isinstance(inner, ast.Name)}
    scope = {}
    for name in names & set(module.members):
        if name == "METHODS":
            scope[name] = names_of_methods()
            continue
        member = module.members[name]
        target = member.final_target if member.is_alias else member
        if not target.is_attribute:
            raise ValueError(
                f"Got {name} in {ast.unparse(node)}, expected constants with literal values. Write the text instead "
                f"of {name}, or assign it to a constant."
            )
        scope[name] = evaluated(ast.parse(str(target.value), mode="eval").body, target.module)
    return eval(compile(ast.Expression(node), "<constant>", "eval"), {**scope})


def text_of(node: ast.expr, module: griffe.Module) -> str:
    """Returns the text of a string literal or of an f-string with package constants."""
    try:
        return re.sub(r"(?<![`\w-])--\w+", r"`\g<0>`", str(evaluated(node, module)))
    except (NameError, SyntaxError, griffe.GriffeError) as error:
        raise ValueError(
            f"Got the help text {ast.unparse(node)}, expected constants of the package only. "
            "Import the constants from the package, or write their values."
        ) from error


def options(cls: griffe.Class) -> dict[str, str]:
    """Returns the list entries of the dataclass fields that have a help text, by field name."""
    entries = {}
    for name, attribute in cls.attributes.items():
        if attribute.is_alias or not str(attribute.value or "").startswith("field("):
            continue
        call = ast.parse(str(attribute.value), mode="eval").body
        keywords = {keyword.arg: keyword.value for keyword in call.keywords}
        metadata = keywords.get("metadata", ast.Dict([], []))
        texts = {ast.literal_eval(key): value for key, value in zip(metadata.keys, metadata.values, strict=True)}
        if "help" not in texts:
            continue
        default = keywords.get("default") or keywords["default_factory"]
        shown = ast.unparse(default.body if isinstance(default, ast.Lambda) else default)
        shown = "[]" if shown == "list" else shown
        head = f"**`{name}`** (`{attribute.annotation}`, *optional*, defaults to `{shown}`)"
        entries[name] = f"- {head}: {text_of(texts['help'], cls.module)}"
    return entries


class HuggingFaceDocstrings(griffe.Extension):
    """Rewrites all docstrings of a package after it is loaded."""

    def on_package(self, *, pkg: griffe.Module, loader: griffe.GriffeLoader, **kwargs) -> None:
        self._rewrite(pkg, documented_paths())

    def _rewrite(self, obj: griffe.Object, paths: dict[str, str]) -> None:
        if obj.docstring is not None:
            text = obj.docstring.value
            obj.docstring.value = as_markdown(text, paths)
            if obj.is_class and obj.name in paths:
                # Fields that the docstring describes are not repeated.
                described = set(re.findall(r"(?:^\s+|, )(\w+)(?= \(|, \w+.*\()", text, flags=re.MULTILINE))
                fields = [entry for name, entry in options(obj).items() if name not in described]
                obj.docstring.value += "\n\n**Options**\n\n" + "\n".join(fields) if fields else ""
        for member in list(obj.members.values()):
            if not member.is_alias:
                self._rewrite(member, paths)
