"""Tests that Python blocks of the documentation run, its commands have existing options, and its links work."""

import os
import re
import runpy
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import fields
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml
from helpers.models import make_model, make_tokenizer
from transformers import LlamaForCausalLM

import w2s_hf
from w2s_hf.config import CompletionConfig, RewardPairConfig, StudentConfig, WeakToStrongConfig
from w2s_hf.experiments.config import (
    ANALYSES,
    BOOTSTRAP,
    METHODS,
    AnyTaskArguments,
    ChessArguments,
    ExperimentArguments,
    RewardArguments,
)
from w2s_hf.sweep.grid import SweepArguments

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", *sorted(path for path in DOCS.rglob("*.md") if not path.name.endswith(".intro.md"))]
INDEXES = [ROOT / "recipes" / "README.md", ROOT / "model_cards" / "README.md"]

# A fenced block: its language, its code, and the comment before it with the reason for not running it.
_BLOCK = re.compile(
    r"(?:^<!-- no test: (?P<reason>[^\n]+) -->\n+)?^```(?P<language>\w*)\n(?P<code>.*?)^```$", re.DOTALL | re.MULTILINE
)


def name_of(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def blocks(page: Path, *languages: str) -> Iterator[re.Match]:
    return (block for block in _BLOCK.finditer(page.read_text()) if block["language"] in languages)


# ---- Python ----


@pytest.fixture
def workplace(tmp_path, monkeypatch):
    """
    The directory that blocks run in: models under the names that blocks use, files of rows and results. The demo is
    small, and nothing is pushed to the Hub.
    """
    for size in ("0.5B", "1.5B", "7B"):
        directory = tmp_path / "Qwen" / f"Qwen2.5-{size}"
        LlamaForCausalLM(make_model("llama").config).save_pretrained(directory)
        make_tokenizer().save_pretrained(directory)
    (tmp_path / "results").symlink_to(ROOT / "results")
    for name in ("sst2", "sciq"):
        shutil.copytree(ROOT / "results" / name, tmp_path / "outputs" / name)
    labels = w2s_hf.WeakLabels(["a", "b", "c"], np.array([[0.2, 0.8]] * 3), {"model": "demo"})
    labels.save(tmp_path / "outputs" / "demo" / "weak_labels" / "seed0")
    (tmp_path / "data").mkdir()
    numbers = range(200)
    messages = {"message": [f"message {i}" for i in numbers], "is_spam": [i % 2 for i in numbers]}
    pd.DataFrame(messages).to_csv(tmp_path / "data" / "messages.csv", index=False)
    small = {"n_weak": 60, "n_train": 120, "n_validation": 20, "n_test": 80, "n_documents": 64}
    monkeypatch.setattr(w2s_hf, "load_demo", partial(w2s_hf.load_demo, **small), raising=False)
    monkeypatch.setattr("w2s_hf.trainers.student_card.WithStudentCard.push_to_hub", lambda *args, **kwargs: None)
    monkeypatch.setenv("W2S_HF_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("page", [page for page in PAGES if list(blocks(page, "python"))], ids=name_of)
def test_python_blocks_run(page, workplace, figures, monkeypatch):
    """
    The blocks of a page run in order, in one namespace, on a CPU and without a network. Those with a file name
    ("Save this code as `my_task.py`:") become that file, which later blocks may import.
    """
    monkeypatch.syspath_prepend(workplace)
    text, namespace = page.read_text(), {}
    for block in blocks(page, "python"):
        if name := re.search(r"[Ss]ave this(?: code)? as\s`(\w+\.py)`:\n+$", text[: block.start()]):
            (workplace / name[1]).write_text(block["code"])
        elif block["reason"] is None:
            line = text[: block.start("code")].count("\n") + 1
            exec(compile("\n" * (line - 1) + block["code"], str(page), "exec"), namespace)


# ---- Commands ----

_RECIPES = {"anthropic_hh": RewardArguments, "chess_puzzles": ChessArguments, "chess": ChessArguments}
_TRAINERS = {RewardArguments: RewardPairConfig, ChessArguments: CompletionConfig}
_MODULES = {
    "memory": ("w2s_hf/memory/__main__.py",),
    "publish": ("w2s_hf/publish.py",),
    "leaderboard": ("w2s_hf/leaderboard.py", "recipes/leaderboard.py"),
    "leak-probe": ("w2s_hf/tasks/leak_probe.py",),
}
_LAUNCH = {"num_processes", "accelerate_config"}
_CONFIGS = {path.stem for path in (ROOT / "w2s_hf" / "configs").glob("*.yaml")}


def commands(page: Path) -> Iterator[list[str]]:
    """The commands of the package on a page, as words: beginning with `w2s`, the script or the module."""
    for block in blocks(page, "bash", "console", "sh", ""):
        for line in block["code"].replace("\\\n", " ").split("\n"):
            words = shlex.split(line.removeprefix("$ "), comments=True) if re.match(r"[\w$.]", line) else []
            for index, word in enumerate(words):
                is_module = word.startswith("w2s_hf") and words[index - 1] == "-m"
                if word == "w2s" or is_module or re.fullmatch(r"(recipes/)?(benchmarks/)?\w+\.py", word):
                    yield words[index:]
                    break


def names(*classes: type) -> set[str]:
    return {field.name for cls in classes for field in fields(cls)}


def options_of(words: list[str]) -> set[str] | None:
    """Returns the options of a command; `None` for scripts that are no experiments."""
    command = words[0]
    if command == "w2s":
        command = words[1] if len(words) > 1 else ""
    elif command.startswith("w2s_hf"):
        command = {"w2s_hf.tasks.leak_probe": "leak-probe"}.get(command, command.rpartition(".")[2])
    elif command.startswith("recipes/") and command.count("/") == 1:
        command = Path(command).stem
    if command in _MODULES:
        sources = [(ROOT / path).read_text() for path in _MODULES[command] if (ROOT / path).exists()]
        return {name.replace("-", "_") for source in sources for name in re.findall(r"\"--([\w-]+)\"", source)}
    every = names(
        AnyTaskArguments, WeakToStrongConfig, RewardArguments, RewardPairConfig, ChessArguments, CompletionConfig
    ) | names(StudentConfig)
    if command == "sweep":
        return names(SweepArguments) | every | _LAUNCH | {"config"}
    if command == "run" and words[0] == "w2s":
        command = words[2]
        if ".py" in command:  # a task of any setting
            return every | _LAUNCH | {"config", "help"}
    elif command not in {path.stem for path in (ROOT / "recipes").glob("*.py")}:
        return {"list_tasks"} if command == "tasks" else None
    experiment: type[ExperimentArguments] = _RECIPES.get(command, AnyTaskArguments)
    trainer = _TRAINERS.get(experiment, WeakToStrongConfig)
    return names(experiment, trainer, StudentConfig) | _LAUNCH | {"config", "help", "list_tasks"}


def values_of(words: list[str], option: str) -> list[str]:
    if f"--{option}" not in words:
        return []
    rest = words[words.index(f"--{option}") + 1 :]
    stop = next((index for index, word in enumerate(rest) if word.startswith("--")), len(rest))
    return rest[:stop]


def problems(words: list[str]) -> list[str]:
    options = options_of(words)
    if options is None:
        return []
    used = [word[2:].split("=")[0].replace("-", "_") for word in words if word.startswith("--")]
    unknown = [f"--{name}" for name in used if name not in options and not name.isupper()]
    for option in ("config", "cell_config"):
        unknown += [name for name in values_of(words, option) if not name.endswith(".yaml") and name not in _CONFIGS]
    known = [*METHODS, BOOTSTRAP]
    unknown += [name for name in values_of(words, "methods") if name not in known and name.isalpha()]
    unknown += [name for name in values_of(words, "analyses") if name not in ANALYSES and name.islower()]
    if words[:2] == ["w2s", "run"]:
        tasks = {*w2s_hf.TASKS, "anthropic_hh", "chess_puzzles"}
        unknown += [] if words[2] in tasks or words[2].endswith(".py") or words[2].isupper() else [words[2]]
    return unknown


@pytest.mark.parametrize("page", [*PAGES, *INDEXES], ids=name_of)
def test_commands_have_options_that_exist(page):
    unknown = {" ".join(words): wrong for words in commands(page) if (wrong := problems(words))}
    assert not unknown


def test_an_option_that_does_not_exist_is_reported():
    assert problems(shlex.split("w2s run boolq --config nosuch --lr 1")) == ["--lr", "nosuch"]


# ---- Links ----

_NO_CODE = re.compile(r"```.*?```|`[^`\n]*`", re.DOTALL)


def anchors(page: Path) -> set[str]:
    """Returns the anchors of the headings of a page, as GitHub and the site create them."""
    text = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
    slugs: set[str] = set()
    for heading in re.findall(r"^#+ (.+)$", text, flags=re.MULTILINE):
        plain = re.sub(r"[^\w\- ]", "", re.sub(r"\]\([^)]*\)", "", heading).lower()).strip()
        slugs.add(plain.replace(" ", "-"))
    return slugs


def broken(page: Path) -> list[str]:
    wrong = []
    for target in re.findall(r"\]\(([^)\s]+)\)", _NO_CODE.sub("", page.read_text())):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        linked = (page.parent / path).resolve() if path else page
        if not linked.exists() or (anchor and linked.suffix == ".md" and anchor not in anchors(linked)):
            wrong.append(target)
    return wrong


@pytest.mark.parametrize("page", [*PAGES, *INDEXES], ids=name_of)
def test_links_lead_somewhere(page):
    assert not broken(page)


def nav(part: object) -> Iterator[str]:
    if isinstance(part, str):
        yield part
    else:
        for inner in part.values() if isinstance(part, dict) else part:
            yield from nav(inner)


def test_every_page_is_in_the_navigation():
    content = "nav:" + (ROOT / "mkdocs.yml").read_text().partition("\nnav:")[2]  # the lines above have tags of mkdocs
    listed = list(nav(yaml.safe_load(content)["nav"]))
    pages = {path.relative_to(DOCS).as_posix() for path in PAGES[1:]}
    assert sorted(listed) == sorted(pages)


# ---- Reference ----


def test_the_page_of_methods_has_every_method_once():
    text = (DOCS / "methods.md").read_text().partition("## Losses")[2].partition("## Measured")[0]
    listed = re.findall(r"^\| `(\w+)` \|", text, flags=re.MULTILINE)
    assert sorted(listed) == sorted([*METHODS, BOOTSTRAP])


def test_the_page_of_the_results_format_is_current():
    """Tests that the page is the output of `python docs/generate_schema.py`."""
    generator = runpy.run_path(str(DOCS / "generate_schema.py"))
    assert generator["PAGE"].read_text() == generator["render"]()


def test_every_public_name_is_in_the_reference():
    text = "\n".join(page.read_text() for page in (DOCS / "api").glob("*.md"))
    missing = [name for name in w2s_hf.__all__ if f"::: w2s_hf.{name}\n" not in f"{text}\n"]
    assert not missing
    index = (DOCS / "api" / "index.md").read_text()
    assert not [name for name in w2s_hf.__all__ if f"`{name}`" not in index]


def test_entries_of_the_reference_exist():
    for page in sorted((DOCS / "api").glob("*.md")):
        for path in re.findall(r"^::: ([\w.]+)$", page.read_text(), flags=re.MULTILINE):
            module, _, name = path.rpartition(".")
            assert hasattr(__import__(module, fromlist=[name]), name), f"{page.name}: {path}"


@pytest.mark.slow
def test_the_site_builds(tmp_path):
    """Builds the site without a warning, where mkdocs is installed."""
    pytest.importorskip("material")
    pytest.importorskip("mkdocstrings")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path)]
    environment = os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    result = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
