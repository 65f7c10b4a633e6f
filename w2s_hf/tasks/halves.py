"""Splits rows into the parts of an experiment, without duplicates. Groups stay together. No row is used twice."""

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

# A larger split is sampled down to this number of rows. No experiment needs more rows, and they are formatted in
# seconds.
MAX_ROWS = 200_000
_TEST_SHARE = 0.2  # share of the rows for testing, if a dataset has no test split
# A dataset in memory (a demo) may have a split with this name. Only the links of a chain use its rows. All other
# parts therefore have the same rows with and without a chain.
LINK_ROWS = "links"
# Default share of the training rows in each part
SHARES = {"weak_half": 0.45, "weak_validation": 0.05, "student_half": 0.45, "student_validation": 0.05}
# Option that sets the number of rows of each part
OPTIONS = {
    "student_half": "--n_train", "weak_half": "--n_weak", "weak_validation": "--n_validation",
    "student_validation": "--n_validation", "test": "--n_test",
}  # fmt: skip


def part_sizes(n_train: int | None, n_weak: int | None, n_validation: int | None) -> dict[str, int | None]:
    """
    Returns the number of rows of each part, without the test set and the links of a chain.

    Args:
        n_train (`int`, *optional*): Rows of the student half. Defaults to `n_weak`.
        n_weak (`int`, *optional*): Rows of the weak half. Defaults to `n_train`.
        n_validation (`int`, *optional*): Rows of both validation parts. Defaults to a tenth of both halves, but at
            least 4.

    Returns:
        `dict`: The number of rows by part. `None` stands for the part's default share of the rows (`SHARES`).

    Raises:
        ValueError: A half would have fewer than 2 rows, or both validation parts together fewer than 4.
    """
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
            raise ValueError(
                f"{OPTIONS[name]}: got {n}, expected at least {smallest} rows, {why}. Set a larger number."
            )
    return sizes


def link_sizes(sizes: dict[str, int | None], n_links: int) -> dict[str, int]:
    """
    Returns the number of training and validation rows of each link of a chain. Each link is as large as the student
    half.

    Args:
        sizes (`dict`): The sizes that [`part_sizes`] returns.
        n_links (`int`): Number of links with separate rows.

    Raises:
        ValueError: The student half has no fixed size.
    """
    n_train, n_validation = sizes["student_half"], sizes["student_validation"]
    if not n_links:
        return {}
    if n_train is None or n_validation is None:
        raise ValueError(
            "Got no --n_train, expected a number. By default the halves and validation parts use all rows, and no "
            "rows are left for the links of the chain. Set --n_train, or train all links on the same rows: "
            "--link_rows same."
        )
    links = range(1, n_links + 1)
    return {
        name: n for link in links for name, n in ((f"link_{link}", n_train), (f"link_{link}_validation", n_validation))
    }


def check_enough(task: AnyTask, sizes: dict[str, int | None], n_available: int) -> None:
    """
    Raises `ValueError` if the parts need more training rows than are available.

    Args:
        task ([`AnyTask`]): The task, named in the message.
        sizes (`dict`): The sizes that [`part_sizes`] returns.
        n_available (`int`): Number of training rows. If classes are balanced, each class has half of them.
    """
    n_wanted = sum(n or 0 for n in sizes.values())
    if n_wanted <= n_available:
        return
    by_option: Counter[str] = Counter()
    for name, option in OPTIONS.items():
        if (n := sizes.get(name)) is not None:
            by_option[option] += n
    ((largest, _),) = by_option.most_common(1)
    fewer = max(2, int(0.98 * by_option[largest] * n_available / n_wanted))
    raise ValueError(
        f"{task.name}: got {', '.join(f'{option} {n}' for option, n in by_option.items())}, {n_wanted} training rows "
        f"in total, expected at most {n_available}, the number of usable rows. Set {largest} {fewer} and reduce the "
        "other options in proportion. (By default --n_weak equals --n_train, and --n_validation is a tenth of their "
        "sum.)"
    )


def too_many(task: AnyTask, name: str, n: int, n_available: int, why: str) -> ValueError:
    """Returns the error for a part, such as `test`, that needs `n` rows if only `n_available` are available."""
    option = OPTIONS.get(name, "--n_train")
    return ValueError(
        f"{task.name}: {option}: got {n} rows for `{name}`, expected at most {n_available} ({why}). Set a smaller "
        f"{option}."
    )


def sample_rows(rows: Dataset, n: int) -> tuple[Dataset, np.ndarray]:
    """
    Returns at most `n` random rows in their original order, and their positions in `rows`, `(n,)` int64. The choice
    depends only on the number of rows and on `n`.
    """
    numbers = np.arange(len(rows))
    if len(rows) > n:
        numbers = np.sort(np.random.default_rng(0).permutation(len(rows))[:n])
        rows = rows.select(numbers)
    return rows, numbers


def read_split(
    task: AnyTask, raw: DatasetDict, names: Sequence[str], n: int | None = None
) -> tuple[str, Dataset, np.ndarray]:
    """
    Picks a split and samples its rows.

    Args:
        task ([`AnyTask`]): The task, named in messages.
        raw ([`~datasets.DatasetDict`]): The splits of the dataset.
        names (`Sequence[str]`): Names of the split. The first one that exists is used.
        n (`int`, *optional*, defaults to `MAX_ROWS`): The largest number of rows to read.

    Returns:
        The name of the split, at most `n` random rows of it, and their positions in the split.

    Raises:
        ValueError: See [`w2s_hf.tasks.loading.pick_split`].
    """
    n = MAX_ROWS if n is None else n
    split, rows = pick_split(task, raw, names)
    if len(rows) > n:
        logger.warning(f"{task.name}: reading a random sample of {n:,} of the {len(rows):,} rows of {split!r}")
    return split, *sample_rows(rows, n)


def group_rows(rows: list[dict]) -> None:
    """Sets `group` of rows by their `keys`. Rows that share a key, directly or through other rows, get one group."""
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
    """
    Returns the spare rows that share no key with the other rows, directly or through other spare rows. The groups of
    the other rows do not change.
    """
    if not spare:
        return []
    others = [{**row} for row in others]
    group_rows(others + spare)
    used_groups = {row["group"] for row in others}
    return [{**row, "group": f"spare {row['group']}"} for row in spare if row["group"] not in used_groups]


def hold_out(task: AnyTask, rows: list[dict], seed: int) -> tuple[list[dict], list[dict]]:
    """Splits rows of a dataset without a test split into train and test rows, by whole groups. Rows need `group`."""
    rows = unique_rows(task, "loaded", rows)
    sides = split_groups(rows, {"train": 1 - _TEST_SHARE, "test": _TEST_SHARE}, np.random.default_rng(seed))
    return sides["train"], sides["test"]


def unique_rows(task: AnyTask, split: str, rows: list[dict], apart_from: Sequence[dict] = ()) -> list[dict]:
    """
    Drops duplicates and logs their number. Rows need `text`, `group` and `ground_truth`.

    The following rows are dropped:

    - Rows that repeat the text of an earlier row, ignoring case and spacing.
    - All rows of a text that occurs with several labels.
    - Rows whose text or group occurs in `apart_from`.
    """
    foreign_texts = {normal(row["text"]) for row in apart_from}
    foreign_groups = {row["group"] for row in apart_from}
    truths = defaultdict(set)
    for row in rows:
        truths[normal(row["text"])].add(row["ground_truth"])
    unique: list[dict] = []
    texts: set[str] = set()
    n_dropped: Counter[str] = Counter()
    for row in rows:
        text = normal(row["text"])
        if len(truths[text]) > 1:
            n_dropped["occur with several labels"] += 1
        elif text in texts:
            n_dropped["repeat another text"] += 1
        elif text in foreign_texts or row["group"] in foreign_groups:
            n_dropped["share their text or group with a test row"] += 1
        else:
            unique.append(row)
            texts.add(text)
    if n_dropped:
        causes = ", ".join(f"{count} {cause}" for cause, count in n_dropped.items())
        logger.info(f"{task.name}: dropped {n_dropped.total()} of {len(rows)} {split} texts: {causes}")
    return unique


def split_groups(rows: list[dict], shares: Mapping[str, float], rng: np.random.Generator) -> dict[str, list[dict]]:
    """
    Splits rows by whole groups, in random order. Each group goes to the side that is furthest below its share of the
    group's majority class.

    Groups with more than a hundredth of all rows are placed first, the largest one on the side with the largest share.
    If they were placed last, they would overfill a side.

    Args:
        rows (`list[dict]`): Rows with `group` and `ground_truth`.
        shares (`Mapping[str, float]`): The relative size of each side, by name.
        rng (`np.random.Generator`): The source of the random order.

    Returns:
        `dict[str, list[dict]]`: The rows of each side, by name.
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
        # Texts (of generative tasks) count as one class.
        n_of_class = np.bincount([0 if isinstance(truth, str) else truth for truth in truths], minlength=2)
        side = int(np.argmin(counts[np.argmax(n_of_class)] / weights))
        counts[:, side] += n_of_class
        sides[names[side]] += group
    return sides


def split_links(
    task: AnyTask, rows: list[dict], parts: dict[str, Dataset], sizes: dict[str, int], seed: int
) -> dict[str, list[dict]]:
    """
    Splits the remaining rows into the links of a chain. A row remains if no other part contains a row of its group.
    The rows of the other parts therefore do not depend on the links.

    Args:
        task ([`AnyTask`]): The task, named in messages.
        rows (`list[dict]`): All training rows, with `group` and `ground_truth`.
        parts (`dict[str, Dataset]`): The other parts, with all their rows.
        sizes (`dict[str, int]`): The sizes that [`link_sizes`] returns.
        seed (`int`): Seed of the split.

    Raises:
        ValueError: Fewer rows remain than the links need.
    """
    used_groups = {group for part in parts.values() for group in part["group"][:]}
    remaining = [row for row in rows if row["group"] not in used_groups]
    n_wanted = sum(sizes.values())
    if n_wanted > len(remaining):
        raise ValueError(
            f"{task.name}: --n_train: got {n_wanted} rows for the {len(sizes)} parts of the chain's links, expected "
            f"at most {len(remaining)}, the rows that no other part uses. Set a smaller --n_train, or train all links "
            "on the same rows: --link_rows same."
        )
    return split_groups(remaining, sizes, np.random.default_rng([seed, zlib.crc32(b"links")]))


def counted(n_dropped: dict[str, int]) -> str:
    """Formats counts by reason, such as `3 with an illegal move, 1 with no solution`."""
    return ", ".join(f"{count} with {reason}" for reason, count in n_dropped.items())


def shuffled(rows: list, rng: np.random.Generator) -> list:
    """Returns the rows in random order."""
    return [rows[position] for position in rng.permutation(len(rows))]
