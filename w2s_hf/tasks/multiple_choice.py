"""Defines the tasks in which a model judges whether one answer to a question is right or wrong.

Most datasets list all answers to a question in one row. MultiRC and MC-TACO have one row per answer, and some of their
questions have several right answers. A text shows only one answer. The question (Q, A1, ..., Ak) becomes k texts
(Q, Ai), as in the paper (A.1). The templates are not from the paper.
"""

from .prompt import PromptFormat
from .task import PARQUET_BRANCH, EmptyFieldError, Source, Task

__all__ = ["MULTIPLE_CHOICE_TASKS"]

_CONTEXT_QUESTION_ANSWER = "{context}\nQuestion: {question}\nAnswer: {answer}"
_WRONG_OR_RIGHT = ("wrong", "right")
_JUDGED = PromptFormat(suffix="\nTeacher: That is", answers=(" incorrect", " correct"))


def _position(value: str, options: list[str]) -> int:
    if value not in options:
        raise ValueError(f"has the right answer {value!r}, expected one of {', '.join(map(repr, options))}")
    return options.index(value)


COSMOS_QA = Task(
    name="cosmos_qa",
    description="Is the answer right? Commonsense questions about a blog post",
    prompt=_JUDGED,
    # The second source is a copy with the same columns.
    sources=(Source("allenai/cosmos_qa", "default", PARQUET_BRANCH), Source("Samsoup/cosmos_qa")),
    template=_CONTEXT_QUESTION_ANSWER,
    choices=lambda row: [row[f"answer{number}"] for number in range(4)],
    correct=lambda row: row["label"],
    reads=("answer0", "answer1", "answer2", "answer3", "label"),
    context="context",
    group="context",
    test_split="validation",
    class_names=_WRONG_OR_RIGHT,
)

DREAM = Task(
    name="dream",
    description="Is the answer right? Questions about a dialogue from English exams",
    prompt=_JUDGED,
    sources=(Source("dataset-org/dream", "plain_text", PARQUET_BRANCH),),
    template="{conversation}\nQuestion: {question}\nAnswer: {answer}",
    fields={"conversation": lambda row: "\n".join(row["dialogue"])},
    choices=lambda row: row["choice"],
    correct=lambda row: _position(row["answer"], row["choice"]),
    reads=("dialogue", "choice", "answer"),
    context="conversation",
    group="conversation",
    class_names=_WRONG_OR_RIGHT,
)

HELLASWAG = Task(
    name="hellaswag",
    description="Is this the right ending of the story?",
    prompt=PromptFormat(suffix="\nIs this ending right or wrong? It is", answers=(" wrong", " right")),
    sources=(Source("Rowan/hellaswag"), Source("Rowan/hellaswag", "default", PARQUET_BRANCH)),
    template="{ctx} {answer}",
    choices=lambda row: row["endings"],
    correct=lambda row: _position(str(row["label"]), ["0", "1", "2", "3"]),
    reads=("endings", "label"),
    context="ctx",
    group="ctx",
    test_split="validation",
    class_names=_WRONG_OR_RIGHT,
)

OPENBOOKQA = Task(
    name="openbookqa",
    description="Is the answer right? Elementary science questions",
    prompt=_JUDGED,
    sources=(Source("allenai/openbookqa", "main"), Source("allenai/openbookqa", "main", PARQUET_BRANCH)),
    template="Question: {question_stem}\nAnswer: {answer}",
    choices=lambda row: row["choices"]["text"],
    correct=lambda row: _position(row["answerKey"], row["choices"]["label"]),
    reads=("choices", "answerKey"),
    group="question_stem",
    class_names=_WRONG_OR_RIGHT,
)

PIQA = Task(
    name="piqa",
    description="Does the solution reach an everyday goal?",
    prompt=PromptFormat(suffix="\nIs this solution right or wrong? It is", answers=(" wrong", " right")),
    sources=(Source("ybisk/piqa", "plain_text", PARQUET_BRANCH), Source("baber/piqa")),
    template="Goal: {goal}\nSolution: {answer}",
    choices=lambda row: [row["sol1"], row["sol2"]],
    correct=lambda row: row["label"],
    reads=("sol1", "sol2", "label"),
    group="goal",
    test_split="validation",
    class_names=_WRONG_OR_RIGHT,
)

QUAIL = Task(
    name="quail",
    description="Is the answer right? Questions about a text, some of which the text does not answer",
    prompt=_JUDGED,
    sources=(Source("textmachinelab/quail", "quail"), Source("textmachinelab/quail", "quail", PARQUET_BRANCH)),
    template=_CONTEXT_QUESTION_ANSWER,
    choices=lambda row: row["answers"],
    correct=lambda row: row["correct_answer_id"],
    reads=("answers", "correct_answer_id"),
    context="context",
    group="context",
    test_split="validation",
    class_names=_WRONG_OR_RIGHT,
)

QUARTZ = Task(
    name="quartz",
    description="Is the answer right? Questions about qualitative relations, with a helpful sentence",
    prompt=_JUDGED,
    sources=(Source("allenai/quartz"), Source("allenai/quartz", "default", PARQUET_BRANCH)),
    template="{para}\nQuestion: {question}\nAnswer: {answer}",
    choices=lambda row: row["choices"]["text"],
    correct=lambda row: _position(row["answerKey"], row["choices"]["label"]),
    reads=("choices", "answerKey"),
    context="para",
    group="para",
    class_names=_WRONG_OR_RIGHT,
)


def _sciq_choices(row: dict) -> list[str]:
    return [row["correct_answer"], row["distractor1"], row["distractor2"], row["distractor3"]]


_SCIQ_COLUMNS = ("correct_answer", "distractor1", "distractor2", "distractor3")

SCIQ = Task(
    name="sciq",
    description="Is the answer right? Science exam questions",
    prompt=_JUDGED,
    sources=(Source("allenai/sciq"), Source("allenai/sciq", "default", PARQUET_BRANCH)),
    template="Question: {question}\nAnswer: {answer}",
    choices=_sciq_choices,
    correct=lambda row: 0,
    reads=_SCIQ_COLUMNS,
    group="question",
    class_names=_WRONG_OR_RIGHT,
)

SCIQ_WITH_SUPPORT = Task(
    name="sciq_with_support",
    description="Is the answer right? Science exam questions, with a passage that supports the answer",
    prompt=_JUDGED,
    sources=SCIQ.sources,
    template="{support}\nQuestion: {question}\nAnswer: {answer}",
    choices=_sciq_choices,
    correct=lambda row: 0,
    reads=_SCIQ_COLUMNS,
    context="support",
    group=("question", "support"),
    drop_empty=True,  # one question in ten has no support
    class_names=_WRONG_OR_RIGHT,
)

SOCIAL_I_QA = Task(
    name="social_i_qa",
    description="Is the answer right? Commonsense questions about people",
    prompt=_JUDGED,
    sources=(Source("allenai/social_i_qa", "default", PARQUET_BRANCH), Source("lighteval/siqa")),
    template=_CONTEXT_QUESTION_ANSWER,
    choices=lambda row: [row["answerA"], row["answerB"], row["answerC"]],
    correct=lambda row: _position(str(row["label"]), ["1", "2", "3"]),
    reads=("answerA", "answerB", "answerC", "label"),
    context="context",
    group="context",
    test_split="validation",
    class_names=_WRONG_OR_RIGHT,
)

MULTIRC = Task(
    name="multirc",
    description="Is the answer right? Questions about a paragraph with one or more right answers (SuperGLUE)",
    prompt=_JUDGED,
    sources=(Source("aps/super_glue", "multirc"), Source("aps/super_glue", "multirc", PARQUET_BRANCH)),
    template="{paragraph}\nQuestion: {question}\nAnswer: {answer}",
    label="label",
    context="paragraph",
    group="paragraph",
    question=("paragraph", "question"),
    test_split="validation",
    drop_empty=True,  # two answers of the training split are empty
    class_names=_WRONG_OR_RIGHT,
)

MC_TACO = Task(
    name="mc_taco",
    description="Is the answer right? Commonsense questions about time with one or more right answers",
    prompt=_JUDGED,
    sources=(Source("CogComp/mc_taco", "plain_text", PARQUET_BRANCH),),
    template="{sentence}\nQuestion: {question}\nAnswer: {answer}",
    label="label",
    context="sentence",
    group="sentence",
    question=("sentence", "question"),
    # The dataset has no train split. Its test split is larger than its validation split.
    train_split="test",
    test_split="validation",
    class_names=_WRONG_OR_RIGHT,
)


def _dialogues(row: dict) -> list[str]:
    for name in ("chosen", "rejected"):
        _, _, reply = row[name].rpartition("\n\nAssistant:")
        if not reply.strip() or "\n\nHuman:" in reply:
            raise EmptyFieldError(f"has no last reply in {name!r}")
    return [row["chosen"], row["rejected"]]


ANTHROPIC_HH_SINGLE = Task(
    name="anthropic_hh_single",
    description="Is this the preferred dialogue of its pair? Models cannot learn this from single dialogues",
    prompt=PromptFormat(suffix="\n\nIs this reply bad or good? It is", answers=(" bad", " good")),
    sources=(Source("Anthropic/hh-rlhf"),),
    template="{answer}",
    # The dataset repeats a dialogue with one turn, with two turns, and so on.
    fields={"first_turn": lambda row: row["chosen"].partition("\n\nAssistant:")[0]},
    choices=_dialogues,
    correct=lambda row: 0,
    reads=("chosen", "rejected"),
    context="answer",
    shorten_from="start",  # the task judges the last reply
    group="first_turn",
    class_names=("rejected", "chosen"),
    drop_empty=True,  # some transcripts end before the reply
)

MULTIPLE_CHOICE_TASKS = (
    COSMOS_QA, DREAM, HELLASWAG, MC_TACO, OPENBOOKQA, QUAIL, PIQA, QUARTZ, SCIQ, SCIQ_WITH_SUPPORT, SOCIAL_I_QA,
    MULTIRC, ANTHROPIC_HH_SINGLE,
)  # fmt: skip
