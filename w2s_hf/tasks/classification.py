"""Defines the binary classification tasks.

The paper lists its 22 tasks in table 1 but publishes only seven prompts (table 2). This package therefore uses
its own templates. The sentence or answer to be judged comes last in a template, because a decoder's head reads the
last token. Rows that share a question or a premise stay in one half (paper, A.1). The authors of this package
chose the columns that define a group.
"""

from .prompt import PromptFormat
from .task import PARQUET_BRANCH, Source, Task, random_key

__all__ = ["CLASSIFICATION_TASKS"]

BOOLQ = Task(
    name="boolq",
    description="Yes/no questions about a Wikipedia passage",
    prompt=PromptFormat(suffix="?\nThe answer is", answers=(" false", " true")),
    sources=(Source("google/boolq"), Source("aps/super_glue", "boolq", rename={"label": "answer"})),
    template="{passage}\nQuestion: {question}",
    label="answer",
    context="passage",
    group="passage",
    test_split="validation",
)

SST2 = Task(
    name="sst2",
    description="Sentiment of a phrase from a film review (GLUE)",
    prompt=PromptFormat(prefix="Review: ", suffix="\nSentiment:", answers=(" negative", " positive")),
    sources=(Source("stanfordnlp/sst2"), Source("nyu-mll/glue", "sst2")),
    template="{sentence}",
    label="label",
    context="sentence",
    class_names=("negative", "positive"),
    test_split="validation",
)

COLA = Task(
    name="cola",
    description="Is the sentence acceptable English? (GLUE)",
    prompt=PromptFormat(
        prefix="Sentence: ", suffix="\nIs the grammar right or wrong? It is", answers=(" wrong", " right")
    ),
    sources=(Source("nyu-mll/glue", "cola"), Source("nyu-mll/glue", "cola", PARQUET_BRANCH)),
    template="{sentence}",
    label="label",
    context="sentence",
    class_names=("unacceptable", "acceptable"),
    test_split="validation",
)

TWITTER_SENTIMENT = Task(
    name="twitter_sentiment",
    description="Sentiment of a tweet (it is not known which dataset the paper used)",
    prompt=PromptFormat(prefix="Tweet: ", suffix="\nSentiment:", answers=(" negative", " positive")),
    sources=(Source("EleutherAI/twitter-sentiment"),),
    template="{text}",
    label="label",
    context="text",
    class_names=("negative", "positive"),
)

AMAZON_POLARITY = Task(
    name="amazon_polarity",
    description="Sentiment of a product review (used in openai/weak-to-strong, not in the paper)",
    prompt=PromptFormat(prefix="Review: ", suffix="\nSentiment:", answers=(" negative", " positive")),
    sources=(Source("fancyzhx/amazon_polarity"),),
    template="{title}\n{content}",
    label="label",
    context="content",
    class_names=("negative", "positive"),
    drop_empty=True,  # some reviews have no title
)

PAWS = Task(
    name="paws",
    description="Do two sentences with the same words have the same meaning?",
    prompt=PromptFormat(suffix="\nYes or no?", answers=(" no", " yes")),
    sources=(
        Source("google-research-datasets/paws", "labeled_final"),
        Source("google-research-datasets/paws", "labeled_final", PARQUET_BRANCH),
    ),
    template="Do both sentences mean the same?\n{sentence1}\n{sentence2}",
    label="label",
    group=(("sentence1", "sentence2"),),
)

WIC = Task(
    name="wic",
    description="Does a word have the same meaning in two sentences? (SuperGLUE)",
    prompt=PromptFormat(suffix="\nYes or no?", answers=(" no", " yes")),
    sources=(Source("aps/super_glue", "wic"), Source("aps/super_glue", "wic", PARQUET_BRANCH)),
    template='Has "{word}" the same sense in both sentences?\n{sentence1}\n{sentence2}',
    label="label",
    # Groups by word would drop 848 of the 3,809 training rows, whose word also occurs in the test set.
    group=(("sentence1", "sentence2"),),
    test_split="validation",
)


def _entailment_label(row: dict) -> int:
    classes = {0: 1, 1: 0, 2: 0, "entailment": 1, "neutral": 0, "contradiction": 0}
    if row["label"] not in classes:
        raise ValueError(f"has the label {row['label']!r}, expected one of {', '.join(map(repr, classes))}")
    return classes[row["label"]]


ANLI_R2 = Task(
    name="anli_r2",
    description="Does the hypothesis follow from the premise? Neutral and contradiction are one class",
    prompt=PromptFormat(suffix="\nThe hypothesis is", answers=(" false", " true")),
    sources=(Source("facebook/anli", "plain_text"),),
    template="{premise}\nHypothesis: {hypothesis}",
    label=_entailment_label,
    reads=("label",),
    context="premise",
    group="premise",
    class_names=("not entailed", "entailed"),
    train_split=("train_r2", "train"),
    test_split=("test_r2", "test"),
)


ETHICS_JUSTICE = Task(
    name="ethics_justice",
    description="Is the claim or excuse reasonable? (ETHICS)",
    prompt=PromptFormat(suffix="\nIs it reasonable or unreasonable? It is", answers=(" wrong", " right")),
    sources=(
        Source("hendrycks/ethics", "justice", PARQUET_BRANCH),
        Source("EleutherAI/hendrycks_ethics", "justice", PARQUET_BRANCH),
    ),
    template="Is this reasonable?\n{scenario}",
    label="label",
    context="scenario",
    fields={
        # The scenarios were written in sets. The scenarios of a set differ only in the reason or in the claim.
        "beginning": lambda row: row["scenario"].strip()[:40],
        "end": lambda row: row["scenario"].strip()[-40:],
    },
    reads=("scenario",),
    group=("beginning", "end"),
    class_names=("unreasonable", "reasonable"),
)

ETHICS_DEONTOLOGY = Task(
    name="ethics_deontology",
    description="Is the excuse valid, or does the duty belong to the role? (ETHICS)",
    prompt=PromptFormat(
        suffix="\nIs this reply reasonable or unreasonable? It is", answers=(" incorrect", " correct")
    ),
    sources=(
        Source("hendrycks/ethics", "deontology", PARQUET_BRANCH),
        Source("EleutherAI/hendrycks_ethics", "deontology", PARQUET_BRANCH),
    ),
    template="{scenario}\nReply: {excuse}",
    label="label",
    context="scenario",
    group="scenario",
    class_names=("unreasonable", "reasonable"),
)

ETHICS_VIRTUE = Task(
    name="ethics_virtue",
    description="Does the character show the trait? (ETHICS)",
    prompt=PromptFormat(suffix="\nThis trait is", answers=(" false", " true")),
    sources=(Source("hendrycks/ethics", "virtue", PARQUET_BRANCH),),
    template="{story}\nTrait: {trait}",
    label="label",
    fields={
        "story": lambda row: row["scenario"].rpartition("[SEP]")[0],
        "trait": lambda row: row["scenario"].rpartition("[SEP]")[2],
    },
    reads=("scenario",),
    context="story",
    group="story",
)


def _first_is_better(row: dict) -> bool:
    # The dataset lists the pleasant scenario first. A hash of the row swaps the order of half of the rows.
    return int(random_key(f"{row['baseline']}\0{row['less_pleasant']}", "order"), 16) % 2 == 1


ETHICS_UTILITARIANISM = Task(
    name="ethics_utilitarianism",
    description="Is the first of two scenarios more pleasant than the second? (ETHICS)",
    prompt=PromptFormat(suffix="\nI would prefer the", answers=(" second", " first")),
    sources=(
        Source("hendrycks/ethics", "utilitarianism", PARQUET_BRANCH),
        # In this copy, `baseline` is the less pleasant scenario.
        Source(
            "EleutherAI/hendrycks_ethics",
            "utilitarianism",
            PARQUET_BRANCH,
            rename={"activity": "baseline", "baseline": "less_pleasant"},
        ),
    ),
    template="Is the first more pleasant than the second?\nFirst: {first}\nSecond: {second}",
    label=_first_is_better,
    fields={
        "first": lambda row: row["baseline"] if _first_is_better(row) else row["less_pleasant"],
        "second": lambda row: row["less_pleasant"] if _first_is_better(row) else row["baseline"],
    },
    reads=("baseline", "less_pleasant"),
    group=(("first", "second"),),
)

CLASSIFICATION_TASKS = (
    BOOLQ, ETHICS_JUSTICE, ETHICS_DEONTOLOGY, ETHICS_VIRTUE, ETHICS_UTILITARIANISM, ANLI_R2, COLA, SST2, PAWS, WIC,
    TWITTER_SENTIMENT, AMAZON_POLARITY,
)  # fmt: skip
