"""The predictions of all models of an experiment for the test rows, `predictions.parquet`."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

__all__ = ["PREDICTIONS", "predictions_table", "read_predictions", "write_predictions"]

PREDICTIONS = "predictions.parquet"

_SCHEMA = pa.schema({
    "seed": pa.int64(),
    "role": pa.string(),
    "id": pa.string(),
    "prediction": pa.list_(pa.float32()),
    "correct": pa.bool_(),
})  # fmt: skip


def predictions_table(
    seed: int, ids: Sequence[str], predictions: Mapping[str, Any], correct: Mapping[str, np.ndarray]
) -> pa.Table:
    """
    Returns the table of the predictions of one seed. It contains neither texts of rows nor completions.

    Args:
        seed (`int`): The seed.
        ids (sequence of `str`): Ids of the N test rows.
        predictions (`dict`): Predictions by role: class probabilities `(N, C)`, or N completions, which are left out.
        correct (`dict[str, np.ndarray]`): Whether each prediction is correct, by role, `(N,)` bool.

    Returns:
        `pyarrow.Table` with the columns of [`read_predictions`], ordered by role.
    """
    tables = []
    for role, values in predictions.items():
        has_probabilities = isinstance(values, np.ndarray)
        columns = {
            "seed": [seed] * len(ids),
            "role": [role] * len(ids),
            "id": list(ids),
            "prediction": list(values.astype(np.float32)) if has_probabilities else [None] * len(ids),
            "correct": correct[role],
        }
        tables.append(pa.table(columns, schema=_SCHEMA))
    return pa.concat_tables(tables)


def write_predictions(predictions: Sequence[pa.Table] | pd.DataFrame, path: str | Path) -> None:
    """
    Writes predictions of all seeds to one file. The file is renamed when it is complete.

    Args:
        predictions (sequence of `pyarrow.Table`, or `pandas.DataFrame`): The tables of the seeds, from
            [`predictions_table`], or all predictions, from [`read_predictions`].
        path (`str` or `Path`): The file.
    """
    if isinstance(predictions, pd.DataFrame):
        of_all = pa.Table.from_pandas(predictions, schema=_SCHEMA, preserve_index=False).replace_schema_metadata()
    else:
        of_all = pa.concat_tables(predictions)
    aside = Path(path).with_name(Path(path).name + ".partial")
    pq.write_table(of_all, aside, compression="zstd")
    os.replace(aside, path)


def read_predictions(path: str | Path) -> pd.DataFrame:
    """
    Reads `predictions.parquet`: one row per seed, model and test row.

    ```python
    from w2s_hf.results import read_predictions

    predictions = read_predictions("outputs/boolq/predictions.parquet")
    accuracies = predictions.groupby(["seed", "role"])["correct"].mean()
    ```

    [`~w2s_hf.metrics.difference_interval`] compares two models on these rows.

    Args:
        path (`str` or `Path`): The file.

    Returns:
        `pandas.DataFrame` with the columns

        - `seed`;
        - `role`: the name of the model, see below;
        - `id`: the id of the test row, which is a hash of its content unless a generation task has other ids;
        - `prediction`: class probabilities, `(C,)` float32; `None` for completions, which are not stored;
        - `correct`: whether the prediction is correct.

        Roles are `weak`, `ceiling`, `ceiling_plain`, `control` and the methods of students. A chain has `link_1`, ...,
        and `direct` and `direct_all` for students without the chain. The linear probe, the prompts, and the student
        that is trained on its zero-shot answers have their names as roles.

    Raises:
        FileNotFoundError: The file does not exist.
        ValueError: The file has other columns.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(
            f"Got {path}, expected the {PREDICTIONS} of a finished experiment. Run the experiment again."
        )
    table = pq.read_table(path)
    if not table.schema.equals(_SCHEMA):
        raise ValueError(
            f"Got {path} with the columns {', '.join(table.column_names)}, expected a {PREDICTIONS} with the columns "
            f"{', '.join(_SCHEMA.names)}. Pass the file of a finished experiment."
        )
    return table.to_pandas()
