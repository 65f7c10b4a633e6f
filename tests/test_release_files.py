"""Tests of the files around the package: versions, lower bounds, workflows, and the sample for language reviews."""

import json
import re
import runpy
import subprocess
import sys
import tomllib
from types import SimpleNamespace

import pytest
import yaml
from helpers.running import ROOT
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import w2s_hf

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))


def script(name: str) -> SimpleNamespace:
    """Returns the names that a script of `.ci` defines."""
    return SimpleNamespace(**runpy.run_path(str(ROOT / ".ci" / name)))


def constraints() -> dict[str, str]:
    """Returns the version that `constraints.txt` pins, by package."""
    pins = [Requirement(line) for line in (ROOT / "constraints.txt").read_text().splitlines() if line[0] != "#"]
    return {canonicalize_name(pin.name): str(pin.specifier).removeprefix("==") for pin in pins}


# ---- Versions ----


def test_the_version_is_defined_in_one_place():
    assert "version" not in PROJECT and "version" in PROJECT["dynamic"]
    command = [sys.executable, "-c", "import w2s_hf, sys; print(w2s_hf.__version__, 'torch' in sys.modules)"]
    assert subprocess.check_output(command, cwd=ROOT, text=True).split() == [w2s_hf.__version__, "False"]
    assert "version" not in yaml.safe_load((ROOT / "CITATION.cff").read_text())


def test_every_dependency_of_the_tests_is_pinned_within_its_bounds():
    pins = constraints()
    optional = PROJECT["optional-dependencies"]
    tested = [*PROJECT["dependencies"], *optional["chess"], *optional["docs"], *optional["ray"], *optional["dev"]]
    for requirement in map(Requirement, tested):
        if requirement.name != "w2s_hf":
            pin = pins[canonicalize_name(requirement.name)]
            assert requirement.specifier.contains(pin), f"constraints.txt: {requirement.name}=={pin}"


def test_floors_are_the_lower_bounds_of_pyproject():
    floors = dict(script("floors.py").floors(PROJECT))
    names = {Requirement(each).name for each in PROJECT["dependencies"]}
    assert names <= set(floors) and {"pytest", "chess", "ray"} <= set(floors)
    assert not {"ruff", "mypy", "mkdocs", "w2s_hf"} & set(floors)
    dependencies = {Requirement(each).name: Requirement(each).specifier for each in PROJECT["dependencies"]}
    for name in names:
        (floor,) = Requirement(floors[name]).specifier
        assert floor.operator == "==" and dependencies[name].contains(floor.version.removesuffix(".*"))
    assert floors["evaluate"] == "evaluate==0.4.5" and floors["transformers"].endswith(".*")


def test_a_dependency_without_a_lower_bound_is_refused():
    project = {"name": "w2s_hf", "dependencies": ["torch>=2.8,<3", "numpy<3"]}
    with pytest.raises(ValueError, match="Got the dependency 'numpy<3', expected a lower bound"):
        list(script("floors.py").floors(project))


def test_floors_prints_requirements_for_pip():
    command = [sys.executable, ROOT / ".ci" / "floors.py", "--without", "torch"]
    lines = subprocess.check_output(command, text=True).split()
    assert all(Requirement(line) for line in lines) and not any(line.startswith("torch=") for line in lines)


# ---- Workflows ----


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_workflows_are_complete(path):
    workflow = yaml.safe_load(path.read_text())
    assert workflow[True], "no trigger"  # YAML 1.1 reads the key `on` as true
    for job in workflow["jobs"].values():
        assert job["runs-on"] and job["timeout-minutes"]
        assert all(("uses" in step) != ("run" in step) for step in job["steps"])
        assert set(job.get("needs", [])) <= set(workflow["jobs"]) or job["needs"] in workflow["jobs"]
    assert workflow["permissions"] == {"contents": "read"}  # jobs that need more request it


def test_only_the_job_that_publishes_can_get_a_token_of_pypi():
    jobs = yaml.safe_load((ROOT / ".github" / "workflows" / "publish.yml").read_text())["jobs"]
    assert [name for name, job in jobs.items() if "id-token" in job.get("permissions", {})] == ["publish"]
    assert jobs["publish"]["needs"] == "build"


def test_files_that_workflows_and_the_docker_image_read_exist():
    commands = "\n".join(path.read_text() for path in WORKFLOWS)
    for name in re.findall(r"(?:python|bash) (\.ci/\S+)", commands):
        assert (ROOT / name).is_file(), name
    for line in (ROOT / "Dockerfile").read_text().splitlines():
        if line.startswith("COPY "):
            assert all((ROOT / name).exists() for name in line.split()[1:-1]), line
    kept = [line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")]
    assert all((ROOT / name).exists() for name in kept)


# ---- Samples of texts ----

PYTHON = '''"""A module.

Its second paragraph.
"""

# A comment of
# two lines.
LIMIT = 3  # at the end of a line
# ruff: noqa


def check(n, logger):
    """Checks `n`."""
    if n > LIMIT:
        raise ValueError(f"Got {n}, expected at most " + str(LIMIT) + ".")
    logger.info("checked " "it" if n else "no", extra="not a message")
    return {"help": "The limit.", "key": "an inner value"}
'''
MARKDOWN = """\
# A heading

One sentence. A [second](page.md) one
on two lines.

```bash
# not a sentence
```

- An item.
| a | a cell of five words |
"""


def test_texts_of_a_python_file():
    assert sorted(script("draw_texts.py").python_texts(PYTHON)) == [
        (1, "docstring", "A module.\n\nIts second paragraph."),
        (6, "comment", "A comment of\ntwo lines."),
        (8, "comment", "at the end of a line"),
        (13, "docstring", "Checks `n`."),
        (15, "message", "Got {n}, expected at most {str(LIMIT)}."),
        (16, "message", "checked it"),
        (17, "message", "The limit."),
    ]


def test_texts_of_a_markdown_file():
    assert list(script("draw_texts.py").markdown_texts(MARKDOWN)) == [
        (1, "sentence", "A heading"),
        (3, "sentence", "One sentence."),
        (3, "sentence", "A second one on two lines."),
        (10, "sentence", "An item."),
        (11, "table cell", "a cell of five words"),
    ]


def test_texts_of_a_yaml_file():
    source = "# A comment.\nname: value  # its reason\nnotes: >-\n  A note of\n  five words.\n"
    assert sorted(script("draw_texts.py").yaml_texts(source)) == [
        (1, "comment", "A comment."),
        (2, "comment", "its reason"),
        (3, "value", "A note of five words."),
    ]


def test_texts_of_a_notebook():
    cells = [{"cell_type": "markdown", "source": ["# A heading\n", "\n", "One sentence."]}]
    cells.append({"cell_type": "code", "source": ["value = 1  # a reason\n"]})
    assert list(script("draw_texts.py").notebook_texts(json.dumps({"cells": cells}))) == [
        (1, "sentence", "A heading"),
        (1, "sentence", "One sentence."),
        (2, "comment", "a reason"),
    ]


@pytest.mark.parametrize(
    ("text", "sentences"),
    [
        ("One two three four.", ["One two three four."]),
        ("One two three. Four five six.", []),
        ("One two\nthree four.", ["One two three four."]),
        ("One two\n\nthree four.", []),
        ("- one two\n- three four", []),
        ("Args:\n    n (`int`, *optional*): One two.\n    m (`int`): One two.", []),
        ("One `a b c d` {len(x) + 1} https://host/a/b/c", ["One `a b c d` {len(x) + 1} https://host/a/b/c"]),
        ("`a b c d e f` is two.", []),
        ("One two:\n```\none two three four five\n```\nthree four", []),
        ("One two:\n    w2s run boolq --seeds 0 1", []),
        ("one and/or two", ["one and/or two"]),
        ("one - two - three", []),
    ],
)
def test_long_sentences(text, sentences):
    assert script("draw_texts.py").long_sentences(text, 3) == sentences


def test_no_sentence_has_25_words():
    """Split the sentences that this test lists. `python .ci/draw_texts.py --longer_than 24` lists them, too."""
    drawing = script("draw_texts.py")
    texts = drawing.read_texts([ROOT / name for name in drawing.DEFAULT])
    long = {f"{text.path}:{text.line}": drawing.long_sentences(text.text, 24) for text in texts}
    assert {place: sentences for place, sentences in long.items() if sentences} == {}


def test_a_seed_draws_the_same_texts(tmp_path):
    (tmp_path / "module.py").write_text(PYTHON)
    (tmp_path / "page.md").write_text(MARKDOWN)
    drawing = script("draw_texts.py")
    texts = drawing.read_texts([tmp_path], tmp_path)
    assert len(texts) == 12 and {text.path for text in texts} == {"module.py", "page.md"}
    drawn = drawing.draw(texts, 5, seed=1)
    assert drawn == drawing.draw(texts, 5, seed=1) and len(set(drawn)) == 5
    assert drawn != drawing.draw(texts, 5, seed=2)
    assert set(drawing.draw(texts, 100, seed=1)) == set(texts)
    with pytest.raises(FileNotFoundError, match="expected a file or a directory"):
        drawing.read_texts([tmp_path / "missing"], tmp_path)


def test_texts_are_drawn_from_the_whole_repository():
    command = [sys.executable, ROOT / ".ci" / "draw_texts.py", "--n", "40", "--seed", "3"]
    printed = subprocess.check_output(command, text=True)
    assert len(re.findall(r"^\S+:\d+: ", printed, re.MULTILINE)) == 40
    assert re.search(r"^40 of \d{4,} texts, seed 3\.$", printed, re.MULTILINE)
