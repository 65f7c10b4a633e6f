"""The numbers of rows of each part of an experiment, and the errors where there are too few."""

from typing import Protocol

__all__ = ["OPTIONS", "SHARES", "AnyTask", "check_enough", "link_sizes", "part_sizes", "too_many"]

# Of the training rows, where no number is given.
SHARES = {"weak_half": 0.45, "weak_validation": 0.05, "student_half": 0.45, "student_validation": 0.05}
# The option that gives the number of rows of each part.
OPTIONS = {
    "student_half": "--n_train", "weak_half": "--n_weak", "weak_validation": "--n_validation",
    "student_validation": "--n_validation", "test": "--n_test",
}  # fmt: skip


class AnyTask(Protocol):
    """The attributes that a task of any kind has."""

    name: str
    description: str


def part_sizes(n_train: int | None, n_weak: int | None, n_validation: int | None) -> dict[str, int | None]:
    """Rows of each part but test set and links; `None` is as many as there are."""
    n_weak = n_train if n_weak is None else n_weak
    n_train = n_weak if n_train is None else n_train
    if n_validation is None and n_train is not None:
        n_validation = max(4, (n_weak + n_train) // 10)
    n_first = None if n_validation is None else n_validation // 2
    n_second = None if n_validation is None else n_validation - n_first
    sizes = {"weak_half": n_weak, "weak_validation": n_first, "student_half": n_train, "student_validation": n_second}
    for name in [name for name in OPTIONS if name in sizes]:
        if (n := sizes[name]) is not None and n < 2:
            is_half = name.endswith("half")
            why = "one of each class" if is_half else "two in each of its two parts"
            n, smallest = (n, 2) if is_half else (n_validation, 4)
            raise ValueError(f"{OPTIONS[name]}: got {n}, expected at least {smallest} rows, {why}.")
    return sizes


def check_enough(task: AnyTask, sizes: dict[str, int | None], n_there: int) -> None:
    """
    Raises `ValueError` where more training rows are wanted than there are.

    Args:
        task: For the message.
        sizes (`dict`): As [`part_sizes`] has it.
        n_there (`int`): Training rows, the same number of each class where classes are balanced.
    """
    n_wanted = sum(n or 0 for n in sizes.values())
    if n_wanted <= n_there:
        return
    by_option: dict[str, int] = {}
    for name, option in OPTIONS.items():
        if sizes.get(name) is not None:
            by_option[option] = by_option.get(option, 0) + sizes[name]
    largest = max(by_option, key=by_option.get)
    fewer = max(2, int(0.98 * by_option[largest] * n_there / n_wanted))
    raise ValueError(
        f"{task.name}: got {', '.join(f'{option} {n}' for option, n in by_option.items())}, {n_wanted} training rows "
        f"in all, expected at most {n_there}, which is what there is. Ask for fewer: {largest} {fewer} and the others "
        "in proportion (unset, --n_weak follows --n_train, and --n_validation both)."
    )


def too_many(task: AnyTask, name: str, n: int, n_there: int, why: str) -> ValueError:
    """The error for a part, such as `test` or `link_1`, of which `n` rows are wanted and `n_there` can be had."""
    return ValueError(
        f"{task.name}: {OPTIONS.get(name, '--n_train')}: got {n} rows for `{name}`, expected at most {n_there} "
        f"({why}). Ask for fewer."
    )


def link_sizes(sizes: dict[str, int | None], n_links: int) -> dict[str, int]:
    """Rows of each link, which is as large as the student half. Raises `ValueError` if that is all there is."""
    n_train, n_validation = sizes["student_half"], sizes["student_validation"]
    if n_links and n_train is None:
        raise ValueError(
            "Got no --n_train, so that the other parts use all rows and none are left for the links of a chain. Set "
            "--n_train, or train all links on the same rows: --link_rows same."
        )
    links = range(1, n_links + 1)
    return {
        name: n for link in links for name, n in ((f"link_{link}", n_train), (f"link_{link}_validation", n_validation))
    }
