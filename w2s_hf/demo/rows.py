"""Generates rows for the embedded demo, in the schema of every task of the package.

Two generators serve all tasks: yes/no questions, and questions with several answers. This module maps their output to
the columns of each task. All rows ask which of the made-up entities are alive. A pretrained model therefore has
knowledge that helps in all tasks.
"""

from collections.abc import Callable

from datasets import Dataset

from ..tasks.task import Task
from .worlds import DemoWorld

__all__ = ["demo_pairs", "demo_rows"]

_QUESTION = "alive ?"


def _letters(n: int) -> list[str]:
    return [chr(ord("A") + number) for number in range(n)]


def _yes_no(row: dict) -> dict:
    return {"passage": row["passage"], "question": row["question"], "answer": row["answer"]}


def _sentence(row: dict) -> dict:
    return {"sentence": f"{row['passage']} {row['question']}", "label": int(row["answer"])}


def _rename(function: Callable[[dict], dict], **names: str) -> Callable[[dict], dict]:
    return lambda row: {names.get(name, name): value for name, value in function(row).items()}


def _pair(first: str, second: str) -> Callable[[dict], dict]:
    return lambda row: {first: row["passage"], second: row["question"], "label": int(row["answer"])}


def _halves(first: str, second: str) -> Callable[[dict], dict]:
    """Puts the first fact in one column, and the remaining facts with the question in another."""

    def to_row(row: dict) -> dict:
        begin, _, end = row["passage"].partition(" . ")
        return {first: f"{begin} .", second: f"{end} {row['question']}", "label": int(row["answer"])}

    return to_row


# The rows of these tasks are built from the rows of `DemoWorld.yes_no_rows`.
_YES_NO = {
    "boolq": _yes_no,
    "cola": _sentence,
    "sst2": _sentence,
    "ethics_justice": _rename(_sentence, sentence="scenario"),
    "twitter_sentiment": _rename(_sentence, sentence="text"),
    "amazon_polarity": _halves("title", "content"),
    "ethics_deontology": _pair("scenario", "excuse"),
    "ethics_virtue": lambda row: {
        "scenario": f"{row['passage']} [SEP] {row['question']}",
        "label": int(row["answer"]),
    },
    "paws": _halves("sentence1", "sentence2"),
    "wic": lambda row: {"word": row["question"].split()[-2], **_halves("sentence1", "sentence2")(row)},
    # 0 is entailment. The labels 1 and 2 (neutral and contradiction) both count as "no".
    "anli_r2": lambda row: {
        "premise": row["passage"],
        "hypothesis": row["question"],
        "label": 0 if row["answer"] else 1 + ord(row["passage"][0]) % 2,
    },
}


def _lettered(row: dict) -> dict:
    letters = _letters(len(row["choices"]))
    return {"choices": {"text": row["choices"], "label": letters}, "answerKey": letters[row["correct"]]}


def _one_row_per_answer(context: str) -> Callable[[dict], list[dict]]:
    return lambda row: [
        {context: row["passage"], "question": _QUESTION, "answer": answer, "label": int(position == row["correct"])}
        for position, answer in enumerate(row["choices"])
    ]


def _sciq(row: dict) -> dict:
    wrong = [answer for position, answer in enumerate(row["choices"]) if position != row["correct"]]
    return {
        "question": f"{row['passage']} {_QUESTION}",
        "correct_answer": row["choices"][row["correct"]],
        **{f"distractor{number}": answer for number, answer in enumerate(wrong, start=1)},
        "support": row["passage"],
    }


def _better_and_worse(first: str, second: str, prompt: str = "") -> Callable[[dict], dict]:
    """Puts the right choice in one column and the wrong choice in another."""

    def to_row(row: dict) -> dict:
        before = prompt.format(**row)
        return {
            first: before + row["choices"][row["correct"]],
            second: before + row["choices"][1 - row["correct"]],
        }

    return to_row


# The rows of these tasks are built from the rows of `DemoWorld.choice_rows`. The values are the number of choices
# and the function that converts a row.
_CHOICE: dict[str, tuple[int, Callable[[dict], dict | list[dict]]]] = {
    "cosmos_qa": (4, lambda row: {
        "context": row["passage"], "question": _QUESTION, "label": row["correct"],
        **{f"answer{number}": answer for number, answer in enumerate(row["choices"])},
    }),
    "dream": (3, lambda row: {
        "dialogue": [row["passage"]], "question": _QUESTION, "choice": row["choices"],
        "answer": row["choices"][row["correct"]],
    }),
    "hellaswag": (4, lambda row: {
        "ctx": f"{row['passage']} {_QUESTION}", "endings": row["choices"], "label": str(row["correct"]),
    }),
    "openbookqa": (4, lambda row: {"question_stem": f"{row['passage']} {_QUESTION}", **_lettered(row)}),
    "piqa": (2, lambda row: {
        "goal": f"{row['passage']} {_QUESTION}", "sol1": row["choices"][0], "sol2": row["choices"][1],
        "label": row["correct"],
    }),
    "quail": (4, lambda row: {
        "context": row["passage"], "question": _QUESTION, "answers": row["choices"],
        "correct_answer_id": row["correct"],
    }),
    "quartz": (2, lambda row: {"para": row["passage"], "question": _QUESTION, **_lettered(row)}),
    "sciq": (4, _sciq),
    "sciq_with_support": (4, _sciq),
    "social_i_qa": (3, lambda row: {
        "context": row["passage"], "question": _QUESTION, "label": str(row["correct"] + 1),
        **{f"answer{letter}": answer for letter, answer in zip(_letters(3), row["choices"], strict=True)},
    }),
    "multirc": (4, _one_row_per_answer("paragraph")),
    "mc_taco": (4, _one_row_per_answer("sentence")),
    "ethics_utilitarianism": (2, _better_and_worse("baseline", "less_pleasant")),
    "anthropic_hh_single": (
        2, _better_and_worse("chosen", "rejected", "\n\nHuman: {passage} " + _QUESTION + "\n\nAssistant: ")
    ),
}  # fmt: skip


def demo_pairs(world: DemoWorld, n: int, stream: str, *, held_out: bool = False) -> Dataset:
    """
    Generates pairs in the schema of Anthropic/hh-rlhf. Accepts the arguments of [`DemoWorld.preference_rows`].

    Returns:
        [`~datasets.Dataset`] with `chosen` and `rejected`, two transcripts with the same beginning.
    """
    prompt = f"\n\nHuman: question : {_QUESTION}\n\nAssistant: "
    pairs = world.preference_rows(n, stream, held_out=held_out)
    return Dataset.from_list([{name: prompt + response for name, response in pair.items()} for pair in pairs])


def demo_rows(task: Task, world: DemoWorld, n: int, stream: str, *, held_out: bool = False) -> Dataset:
    """
    Generates rows in the schema of a task's dataset.

    Args:
        task ([`Task`]): A task of the package.
        world ([`DemoWorld`]): The world of the rows.
        n (`int`): The minimum number of texts after the task's conversion to one right and one wrong answer per
            question.
        stream (`str`): Name of the random stream, such as `"train"` or `"test"`.
        held_out (`bool`, *optional*, defaults to `False`): As in [`DemoWorld.yes_no_rows`].

    Returns:
        [`~datasets.Dataset`] with the columns of the task.

    Raises:
        ValueError: The demo cannot generate rows for this task.
    """
    if task.name in _YES_NO:
        rows = [_YES_NO[task.name](row) for row in world.yes_no_rows(n, stream, held_out=held_out)]
    elif task.name in _CHOICE:
        n_choices, to_rows = _CHOICE[task.name]
        # A question becomes two texts. A pair of scenarios becomes one text.
        n_items = (n + 1) // 2 if task.choices or task.question else n
        rows = []
        for item in world.choice_rows(n_items, stream, n_choices=n_choices, held_out=held_out):
            converted = to_rows(item)
            rows += converted if isinstance(converted, list) else [converted]
    else:
        raise ValueError(
            f"Got the task {task.name}, for which the demo has no rows. Set --weak_model and --student_model, and "
            "--dataset_path if the rows are not in the `sources` of the task."
        )
    return Dataset.from_list(rows)
