"""Compares two `results.json` without their times, and lists the differences.

python tests/helpers/compare_results.py A/results.json B/results.json
"""

import json
import sys
from collections.abc import Iterator
from pathlib import Path


def differences(first: object, second: object, path: str = "") -> Iterator[str]:
    """Yields a line for each JSON value that differs, with its path; `wall_seconds` are not compared."""
    if isinstance(first, dict) and isinstance(second, dict):
        for name in dict.fromkeys([*first, *second]):
            if name == "wall_seconds":
                continue
            if name not in first or name not in second:
                yield f"{path}.{name}: only in the {'second' if name not in first else 'first'}"
            else:
                yield from differences(first[name], second[name], f"{path}.{name}")
    elif isinstance(first, list) and isinstance(second, list) and len(first) == len(second):
        for position, pair in enumerate(zip(first, second, strict=True)):
            yield from differences(*pair, f"{path}[{position}]")
    elif first != second:
        yield f"{path}: {first!r} != {second!r}"


def main() -> None:
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    first, second = (json.loads(Path(path).read_text(encoding="utf-8")) for path in sys.argv[1:])
    lines = list(differences(first, second))
    print("\n".join(lines) or "equal except for times")
    sys.exit(bool(lines))


if __name__ == "__main__":
    main()
