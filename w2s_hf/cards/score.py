"""The accuracy of a model as cards state it."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

from ..metrics import rounded
from .markdown import Markup

__all__ = ["Score", "interval"]


@dataclass(frozen=True)
class Score:
    """
    Accuracy of a model on the test rows.

    Args:
        model (`str`): Hub id, or the name of a local directory.
        accuracy (`float`): In [0, 1].
        n (`int`): Test rows.
        ci95 (`tuple[float, float]`, *optional*): Its 95 % interval.
        revision (`str`, *optional*): Commit on the Hub; `None` for a model that is not there.
        weights (`str`, *optional*): Hash of a model that is a local directory, the same wherever it is copied to.
    """

    model: str
    accuracy: float
    n: int
    ci95: tuple[float, float] | None = None
    revision: str | None = None
    weights: str | None = None

    def __post_init__(self):
        # A NumPy number, which is what a mean is, would get into the front matter as a pickle.
        object.__setattr__(self, "accuracy", float(self.accuracy))
        object.__setattr__(self, "n", int(self.n))
        if self.ci95 is not None:
            low, high = self.ci95
            object.__setattr__(self, "ci95", (float(low), float(high)))

    @classmethod
    def of(cls, result: object) -> Self:
        """Makes a score of a record of `w2s_hf.results`, or of the entry of a model in `results.json` or on a card."""
        get = result.get if isinstance(result, dict) else lambda name: getattr(result, name, None)
        values: dict[str, Any] = {field.name: get(field.name) for field in dataclasses.fields(cls)}
        return cls(**values)

    @property
    def shown(self) -> Markup:
        """`0.701 [0.677, 0.723]`"""
        return Markup(rounded(self.accuracy)) + interval(self.ci95, 3)


def interval(ci95: Sequence[float] | None, digits: int) -> Markup:
    """` [0.677, 0.723]`, or nothing."""
    return Markup("" if ci95 is None else f" [{ci95[0]:.{digits}f}, {ci95[1]:.{digits}f}]")
