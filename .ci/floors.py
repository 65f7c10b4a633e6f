"""Prints the lower bounds of all dependencies in pyproject.toml, including test dependencies, as requirements.

python .ci/floors.py > floors.txt && pip install -r floors.txt -e ".[dev]"
python .ci/floors.py --without torch    # leaves torch out, for example because it comes from another index

The requirements allow the bug-fix releases of a lower bound: `peft>=0.18` becomes `peft==0.18.*`, and
`evaluate>=0.4.5` becomes `evaluate==0.4.5`. Packages that build the docs or check the code are left out.
"""

import argparse
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
# These packages build the docs or check the code. The package does not import them.
TOOLS = {"mkdocs", "mkdocs-material", "mkdocstrings", "mypy", "pre-commit", "ruff"}
_REQUIREMENT = re.compile(r"(?P<name>[\w.-]+)(?P<extras>\[[\w,.-]+\])?>=(?P<floor>[\d.]+)")


def floors(project: dict) -> Iterator[tuple[str, str]]:
    """
    Yields the name and the pinned requirement of each dependency.

    Args:
        project (`dict`): The table `project` of a pyproject.toml.

    Raises:
        ValueError: A dependency has no lower bound.
    """
    optional = project.get("optional-dependencies", {})
    requirements = [*project["dependencies"], *optional.get("dev", [])]
    for requirement in requirements:
        if requirement.startswith(project["name"] + "["):
            extras = requirement.partition("[")[2].rstrip("]").split(",")
            requirements.extend(each for extra in extras for each in optional[extra.strip()])
            continue
        match = _REQUIREMENT.match(requirement)
        if match is None:
            raise ValueError(f"Got the dependency {requirement!r}, expected a lower bound. Add >= and a version.")
        name, floor = match["name"], match["floor"]
        if name not in TOOLS:
            yield name, f"{name}=={floor}" + (".*" if floor.count(".") < 2 else "")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--without", nargs="*", default=[], metavar="NAME", help="Names of packages to leave out.")
    without = parser.parse_args().without
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    print("\n".join(requirement for name, requirement in floors(project) if name not in without))


if __name__ == "__main__":
    main()
