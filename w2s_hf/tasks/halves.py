"""Splits rows of any kind into halves and parts: groups stay together, duplicates count once, no row is used twice."""

import logging
import zlib
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence

import numpy as np
from datasets import Dataset, DatasetDict
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from .loading import pick_split
from .task import AnyTask, normal

__all__ = [
    "LINK_ROWS", "MAX_ROWS", "OPTIONS", "SHARES", "check_enough", "counted", "group_rows", "hold_out", "link_sizes",
    "part_sizes", "read_split", "sample_rows", "set_apart", "shuffled", "split_groups", "split_links", "too_many",
    "unique_rows",
]  # fmt: skip

logger = logging.getLogger(__name__)

# Of a larger split, so many random rows: far more than any experiment takes, and formatted in seconds.
MAX_ROWS = 200_000
_HELD_OUT = 0.2
# A split of rows in memory that serve the links of a chain and no other part, so that with a chain or without one
# everybody else has the same rows.
LINK_ROWS = "links"
# Of the training rows, where no number is given.
SHARES = {"weak_half": 0.45, "weak_validation": 0.05, "student_half": 0.45, "student_validation": 0.05}
# The option that gives the number of rows of each part.
OPTIONS = {
    "student_half": "--n_train", "weak_half": "--n_weak", "weak_validation": "--n_validation",
    "student_validation": "--n_validation", "test": "--n_test",
}  # fmt: skip


def part_sizes(n_train: int | None, n_weak: int | None, n_validation: int | None) -> dict[str, int | None]:
    """Returns the number of rows of each part but test set and links; `None` is as many as there are."""
    n_weak = n_train if n_weak is None else n_weak
    n_train = n_weak if n_train is None else n_train
    if n_validation is None and n_train is not None and n_weak is not None:
        n_validation = max(4, (n_weak + n_train) // 10)
    n_first = None if n_validation is None else n_validation // 2
    n_second = None if n_validation is None else (n_validation + 1) // 2
    sizes = {"weak_half": n_weak, "weak_validation": n_first, "student_half": n_train, "student_validation": n_second}
    for name in [name for name in OPTIONS if name in sizes]:
        if (n := sizes[name]) is not None and n < 2:
            is_half = name.endswith("half")
            why = "one of each class" if is_half else "two in each of its two parts"
            n, smallest = (n, 2) if is_half else (n_validation, 4)
            raise ValueError(f"{OPTIONS[name]}: got {n}, expected at least {smallest} rows, {why}.")
    return sizes


def link_sizes(sizes: dict[str, int | None], n_links: int) -> dict[str, int]:
    """Returns the number of rows of each link, that of the student half. Raises `ValueError` if it has none."""
    n_train, n_validation = sizes["student_half"], sizes["student_validation"]
    if not n_links:
        return {}
    if n_train is None or n_validation is None:
        raise ValueError(
            "Got no --n_train, so that the other parts use all rows and none are left for the links of a chain. Set "
            "--n_train, or train all links on the same rows: --link_rows same."
        )
    links = range(1, n_links + 1)
    return {
        name: n for link in links for name, n in ((f"link_{link}", n_train), (f"link_{link}_validation", n_validation))
    }


def check_enough(task: AnyTask, sizes: dict[str, int | None], n_there: int) -> None:
    """
    Raises `ValueError` where more training rows are wanted than there are.

    Args:
        task ([`AnyTask`]): The task, named in the message.
        sizes (`dict`): The sizes that [`part_sizes`] returns.
        n_there (`int`): Number of training rows, the same number of each class where classes are balanced.
    """
    n_wanted = sum(n or 0 for n in sizes.values())
    if n_wanted <= n_there:
        return
    by_option: Counter[str] = Counter()
    for name, option in OPTIONS.items():
        if (n := sizes.get(name)) is not None:
            by_option[option] += n
    ((largest, _),) = by_option.most_common(1)
    fewer = max(2, int(0.98 * by_option[largest] * n_there / n_wanted))
    raise ValueError(
        f"{task.name}: got {', '.join(f'{option} {n}' for option, n in by_option.items())}, {n_wanted} training rows "
        f"in all, expected at most {n_there}, which is what there is. Ask for fewer: {largest} {fewer} and the others "
        "in proportion (unset, --n_weak follows --n_train, and --n_validation both)."
    )


def too_many(task: AnyTask, name: str, n: int, n_there: int, why: str) -> ValueError:
    """Returns the error for a part, such as `test`, for which `n` rows are wanted and `n_there` are available."""
    return ValueError(
        f"{task.name}: {OPTIONS.get(name, '--n_train')}: got {n} rows for `{name}`, expected at most {n_there} "
        f"({why}). Ask for fewer."
    )


def sample_rows(rows: Dataset, n: int) -> tuple[Dataset, np.ndarray]:
    """Returns at most `n` random rows in their order, always the same, and their numbers: `(len(rows),)` int64."""
    numbers = np.arange(len(rows))
    if len(rows) > n:
        numbers = np.sort(np.random.default_rng(0).permutation(len(rows))[:n])
        rows = rows.select(numbers)
    return rows, numbers


def read_split(
    task: AnyTask, raw: DatasetDict, names: Sequence[str], n: int | None = None
) -> tuple[str, Dataset, np.ndarray]:
    """
    Returns the name of the split that [`w2s_hf.tasks.loading.pick_split`] picks, at most `n` random rows of it, and
    their numbers. The default of `n` is more than any experiment takes.
    """
    n = MAX_ROWS if n is None else n
    split, rows = pick_split(task, raw, names)
    if len(rows) > n:
        logger.warning(f"{task.name}: of {len(rows):,} rows of {split!r}, {n:,} random ones are read")
    return split, *sample_rows(rows, n)


def group_rows(rows: list[dict]) -> None:
    """Sets `group` of rows by their `keys`: rows that share a key, directly or through other rows, get the same."""
    number_of_key: dict[str, int] = {}
    edges = [
        (i, number_of_key.setdefault(key, len(number_of_key))) for i, row in enumerate(rows) for key in row["keys"]
    ]
    row_numbers, key_numbers = np.array(edges).T
    n_nodes = len(rows) + len(number_of_key)
    graph = coo_array((np.ones(len(edges)), (row_numbers, len(rows) + key_numbers)), shape=(n_nodes, n_nodes))
    components = connected_components(graph, directed=False)[1][: len(rows)]
    for row, component in zip(rows, components.tolist(), strict=True):
        row["group"] = str(component)


def set_apart(spare: list[dict], others: list[dict]) -> list[dict]:
    """Returns the spare rows that share no key with others, directly or through spare ones; others do not change."""
    if not spare:
        return []
    others = [{**row} for row in others]
    group_rows(others + spare)
    taken = {row["group"] for row in others}
    return [{**row, "group": f"spare {row['group']}"} for row in spare if row["group"] not in taken]


def hold_out(task: AnyTask, rows: list[dict], seed: int) -> tuple[list[dict], list[dict]]:
    """Splits the rows of a dataset with one split into train and test rows by whole groups. Rows need `group`."""
    rows = unique_rows(task, "read", rows)
    sides = split_groups(rows, {"train": 1 - _HELD_OUT, "test": _HELD_OUT}, np.random.default_rng(seed))
    return sides["train"], sides["test"]


def unique_rows(task: AnyTask, split: str, rows: list[dict], apart_from: Sequence[dict] = ()) -> list[dict]:
    """
    Drops rows that repeat the text of an earlier one up to case and spacing, all rows of a text with several labels,
    and rows whose text or group is in `apart_from`. Rows need `text`, `group` and `ground_truth`.
    """
    foreign_texts = {normal(row["text"]) for row in apart_from}
    foreign_groups = {row["group"] for row in apart_from}
    truths = defaultdict(set)
    for row in rows:
        truths[normal(row["text"])].add(row["ground_truth"])
    kept: list[dict] = []
    seen: set[str] = set()
    lost: Counter[str] = Counter()
    for row in rows:
        text = normal(row["text"])
        if len(truths[text]) > 1:
            lost["are there with both labels"] += 1
        elif text in seen:
            lost["repeat another"] += 1
        elif text in foreign_texts or row["group"] in foreign_groups:
            lost["share their text or group with a test row"] += 1
        else:
            kept.append(row)
            seen.add(text)
    if lost:
        causes = ", ".join(f"{count} {cause}" for cause, count in lost.items())
        logger.info(f"{task.name}: of {len(rows)} {split} texts, {causes}: left out")
    return kept


def split_groups(rows: list[dict], shares: Mapping[str, float], rng: np.random.Generator) -> dict[str, list[dict]]:
    """
    Splits rows by whole groups, in random order: each goes to the side that is furthest behind its share of the
    group's more frequent class.

    Groups above a hundredth of all rows go first, the largest to the largest share: late, they would overfill a side.
    """
    members = defaultdict(list)
    for row in rows:
        members[row["group"]].append(row)
    groups = list(members.values())
    order = rng.permutation(len(groups)).tolist()
    order.sort(key=lambda position: -max(len(groups[position]) - len(rows) // 100, 0))
    names = sorted(shares, key=lambda name: -shares[name])
    weights = np.array([shares[name] for name in names], dtype=float)
    counts = np.zeros((2, len(names)))
    sides: dict[str, list[dict]] = {name: [] for name in shares}
    for position in order:
        group = groups[position]
        truths = [row["ground_truth"] for row in group]
        # Text has no classes to keep in balance.
        n_of_class = np.bincount([0 if isinstance(truth, str) else truth for truth in truths], minlength=2)
        side = int(np.argmin(counts[np.argmax(n_of_class)] / weights))
        counts[:, side] += n_of_class
        sides[names[side]] += group
    return sides


def split_links(
    task: AnyTask, rows: list[dict], parts: dict[str, Dataset], wanted: dict[str, int], seed: int
) -> dict[str, list[dict]]:
    """
    Splits the remaining rows into the links of a chain. A row remains if no other part has it or a row of its group:
    links move no row of any other part.

    Args:
        task ([`AnyTask`]): The task, named in messages.
        rows (`list[dict]`): All training rows, with `group` and `ground_truth`.
        parts (`dict[str, Dataset]`): The finished other parts.
        wanted (`dict[str, int]`): The sizes that [`link_sizes`] returns.
        seed (`int`): Seed of the split.

    Raises:
        ValueError: fewer are left than are wanted.
    """
    taken = {group for part in parts.values() for group in part["group"]}
    left = [row for row in rows if row["group"] not in taken]
    n_wanted = sum(wanted.values())
    if n_wanted > len(left):
        raise ValueError(
            f"{task.name}: --n_train: got {n_wanted} rows for the {len(wanted)} parts of a chain's links, expected at "
            f"most {len(left)}, which are left. Ask for fewer, or train all links on the same rows: --link_rows same."
        )
    return split_groups(left, wanted, np.random.default_rng([seed, zlib.crc32(b"links")]))


def counted(n_dropped: dict[str, int]) -> str:
    """Formats counts by reason, such as `3 with an illegal move, 1 with no solution`."""
    return ", ".join(f"{count} with {reason}" for reason, count in n_dropped.items())


def shuffled(rows: list, rng: np.random.Generator) -> list:
    """Returns the rows in random order."""
    return [rows[position] for position in rng.permutation(len(rows))]
