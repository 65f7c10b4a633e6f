"""The predictions of the test rows by all models of an experiment, `predictions.parquet`."""

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
    Makes the table of the predictions of one seed. It has no text of rows and no completions.

    Args:
        seed (`int`): The seed.
        ids (sequence of `str`): Ids of the N test rows.
        predictions (`dict`): By role, class probabilities `(N, C)`, or N completions, which are left out.
        correct (`dict[str, np.ndarray]`): By role, which predictions are correct, `(N,)` bool.

    Returns:
        `pyarrow.Table` with the columns of [`read_predictions`], role by role.
    """
    tables = []
    for role, of_role in predictions.items():
        has_probabilities = isinstance(of_role, np.ndarray)
        columns = {
            "seed": [seed] * len(ids),
            "role": [role] * len(ids),
            "id": list(ids),
            "prediction": list(of_role.astype(np.float32)) if has_probabilities else [None] * len(ids),
            "correct": correct[role],
        }
        tables.append(pa.table(columns, schema=_SCHEMA))
    return pa.concat_tables(tables)


def write_predictions(tables: Sequence[pa.Table], path: str | Path) -> None:
    """Writes the tables of all seeds as one file, as a whole or not at all."""
    aside = Path(path).with_name(Path(path).name + ".partial")
    pq.write_table(pa.concat_tables(tables), aside, compression="zstd")
    os.replace(aside, path)


def read_predictions(path: str | Path) -> pd.DataFrame:
    """
    Reads `predictions.parquet`: a row for each seed, model and test row.

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
        - `role`: `weak`, `ceiling`, `ceiling_plain`, the method of a student, `control`, `link_1`, ... of a chain,
          `direct` and `direct_all` (students without the chain), and the names of the linear probe and of the
          prompts of `--analyses prompting`;
        - `id`: the id of the test row, which is a hash of its content unless a generation task gives another one;
        - `prediction`: class probabilities, `(C,)` float32; `None` for completions, which are not in the file;
        - `correct`: whether the prediction is correct.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it has other columns.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"Got {path}, expected a {PREDICTIONS} that a recipe wrote. Run the recipe again.")
    table = pq.read_table(path)
    if not table.schema.equals(_SCHEMA):
        raise ValueError(
            f"Got {path} with the columns {', '.join(table.column_names)}, expected a {PREDICTIONS} that a recipe "
            f"wrote, with {', '.join(_SCHEMA.names)}."
        )
    return table.to_pandas()
