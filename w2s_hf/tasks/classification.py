"""Tasks whose rows are one text and a yes or no."""

from .task import Source, Task

__all__ = ["BOOLQ", "SST2"]


def _boolq(row: dict) -> dict:
    # The question comes last, where a decoder's head reads, as in the published code.
    return {
        "text": f"{row['passage']}\nQuestion: {row['question']}",
        "context": row["passage"],
        "group": row["passage"],
        "ground_truth": int(row["answer"]),
    }


BOOLQ = Task(
    name="boolq",
    description="Yes/no questions about a passage of Wikipedia",
    sources=(Source("google/boolq"), Source("aps/super_glue", "boolq")),
    columns=("question", "answer", "passage"),
    format=_boolq,
    class_names=("no", "yes"),
)


def _sst2(row: dict) -> dict:
    return {"text": row["sentence"].strip(), "ground_truth": int(row["label"])}


SST2 = Task(
    name="sst2",
    description="Sentiment of a phrase from a film review",
    sources=(Source("stanfordnlp/sst2"), Source("nyu-mll/glue", "sst2")),
    columns=("sentence", "label"),
    format=_sst2,
    class_names=("negative", "positive"),
)
