"""The accuracy of a model as model cards show it."""

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
    The accuracy of a model on the test rows.

    Args:
        model (`str`): Hub id, or the name of a local directory.
        accuracy (`float`): Accuracy in [0, 1].
        n (`int`): Number of test rows.
        ci95 (`tuple[float, float]`, *optional*): 95 % interval of the accuracy.
        revision (`str`, *optional*): Commit on the Hub; `None` for a local model.
        weights (`str`, *optional*): Hash of the weights of a local model, independent of its directory.
    """

    model: str
    accuracy: float
    n: int
    ci95: tuple[float, float] | None = None
    revision: str | None = None
    weights: str | None = None

    def __post_init__(self):
        # A NumPy number, such as a mean, would be written to the YAML front matter as a Python object.
        object.__setattr__(self, "accuracy", float(self.accuracy))
        object.__setattr__(self, "n", int(self.n))
        if self.ci95 is not None:
            low, high = self.ci95
            object.__setattr__(self, "ci95", (float(low), float(high)))

    @classmethod
    def of(cls, result: object) -> Self:
        """Returns the score in a record of `w2s_hf.results`, or in an entry of `results.json` or of a card."""
        get = result.get if isinstance(result, dict) else lambda name: getattr(result, name, None)
        values: dict[str, Any] = {field.name: get(field.name) for field in dataclasses.fields(cls)}
        return cls(**values)

    @property
    def shown(self) -> Markup:
        """The accuracy with its interval, such as `0.701 [0.677, 0.723]`."""
        return Markup(rounded(self.accuracy)) + interval(self.ci95, 3)


def interval(ci95: Sequence[float] | None, digits: int) -> Markup:
    """Returns an interval such as ` [0.677, 0.723]`, with a leading space, or an empty string for `None`."""
    return Markup("" if ci95 is None else f" [{ci95[0]:.{digits}f}, {ci95[1]:.{digits}f}]")
