"""The results of experiments: `results.json` as typed records, and many such files as one table."""

from typing import TYPE_CHECKING, Any

from .record import Record
from .schema import (
    SELF_TRAINED,
    Agreement,
    AnyScore,
    BaselineResult,
    ControlResult,
    DatasetInfo,
    DirectResult,
    DirectSummary,
    ExperimentResult,
    LabelsResult,
    LinkResult,
    MethodSummary,
    ModelScore,
    Pgr,
    PgrSummary,
    SeedResult,
    SelfTrainedSummary,
    StudentResult,
    TransferResult,
    TransferStudent,
    TransferSummary,
    is_results,
)
from .settings import RunSettings, StudentSettings, TrainingSettings

if TYPE_CHECKING:
    from .predictions import PREDICTIONS, read_predictions
    from .table import RESULT_COLUMNS, find_results, read_results

__all__ = [
    "PREDICTIONS", "RESULT_COLUMNS", "SELF_TRAINED", "Record", "Agreement", "AnyScore", "BaselineResult",
    "ControlResult", "DatasetInfo", "DirectResult", "DirectSummary", "ExperimentResult", "LabelsResult", "LinkResult",
    "MethodSummary", "ModelScore", "Pgr", "PgrSummary", "RunSettings", "SeedResult", "SelfTrainedSummary",
    "StudentResult", "StudentSettings", "TrainingSettings", "find_results", "is_results",
    "read_predictions", "read_results",
    "TransferResult", "TransferStudent", "TransferSummary",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    # These modules need pandas, and `table` needs the cards, which import this package.
    if name in ("PREDICTIONS", "read_predictions"):
        from . import predictions

        return getattr(predictions, name)
    if name in ("RESULT_COLUMNS", "find_results", "read_results"):
        from . import table

        return getattr(table, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
