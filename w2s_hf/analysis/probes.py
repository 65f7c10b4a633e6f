"""Probes: simple classifiers on hidden states, to measure what models know and correct weak labels (paper, 5.2.3)."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from datasets import Dataset
from peft import PeftModel
from scipy.sparse import csr_array
from scipy.sparse.csgraph import connected_components
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import KFold
from sklearn.neighbors import NearestNeighbors, kneighbors_graph
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler
from transformers import BatchEncoding, PreTrainedModel, PreTrainedTokenizerBase

from ..cards.markdown import markdown_table, render
from ..modeling import align_padding
from ..modeling.heads import classification_head
from .arguments import probabilities_of, tokens_of
from .batches import through_model
from .figures import accuracy_cell, bars, draw, intervals_of, mean_cell, over_seeds, pgr_cell, pgr_note

__all__ = [
    "doubtful",
    "last_hidden_states",
    "logistic_probe",
    "neighbour_labels",
    "out_of_fold",
    "plot_probes",
    "probes_section",
    "topological_filter",
]


@torch.inference_mode()
def last_hidden_states(
    model: PreTrainedModel | PeftModel,
    tokenizer: PreTrainedTokenizerBase,
    tokens: Dataset | Sequence[Mapping],
    *,
    batch_size: int = 32,
) -> np.ndarray:
    """
    Returns the input of a classifier's head. For a decoder it is the last layer's state of the last token that is not
    its padding token, for an encoder that of the first token, pooled where the model pools. (Some encoders, DistilBERT
    and DeBERTa, have layers in between that are new before finetuning: then these are random functions of what the
    encoder knows.)

    Args:
        model ([`~transformers.PreTrainedModel`] or [`~peft.PeftModel`]): A sequence classifier in eval mode.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]): Tokenizer that pads.
        tokens ([`~datasets.Dataset`] or a list of encodings): Rows with `input_ids`, without padding.
        batch_size (`int`, *optional*, defaults to 32): Rows at a time on each rank.

    Returns:
        `np.ndarray` of shape `(N, hidden size)`, float32, in order, on every rank.
    """
    encoded = tokens_of(tokens, "tokens")
    align_padding(model, tokenizer)  # a decoder refuses batches without it
    captured: list[torch.Tensor] = []
    handle = classification_head(model).register_forward_pre_hook(lambda module, inputs: captured.append(inputs[0]))
    reads_last = hasattr(model, "score")  # a decoder's head; it reads all tokens, and its model takes the last

    def answer(inputs: BatchEncoding) -> np.ndarray:
        model(**inputs.to(model.device))
        hidden = captured.pop().float()
        if hidden.ndim == 3:
            # The rule of transformers: the last token that is not the padding token, which may also end a text.
            is_token = (inputs["input_ids"] != tokenizer.pad_token_id).int()
            last = (is_token * torch.arange(1, hidden.shape[1] + 1, device=is_token.device)).argmax(dim=1)
            hidden = hidden[range(len(hidden)), last if reads_last else 0]
        return hidden.cpu().numpy()

    try:
        return through_model(
            tokenizer, encoded, answer, batch_size=batch_size, padding_side="right", desc="Hidden states"
        )
    finally:
        handle.remove()


def logistic_probe(
    features: np.ndarray,
    probabilities: np.ndarray,
    validation: tuple[np.ndarray, np.ndarray] | None = None,
    *,
    l2: Sequence[float] = (1e-4, 1e-3, 1e-2, 1e-1),
) -> Pipeline:
    """
    Fits logistic regression to soft labels, which weight each row for both classes. Features are standardized.

    Args:
        features (`np.ndarray` of shape `(N, D)`): Inputs to learn from.
        probabilities (`np.ndarray` of shape `(N, 2)` or `(N,)`): Their labels: probabilities, P(class 1) or classes.
        validation (pair of arrays, *optional*): Features and labels that select among several `l2`: the best accuracy
            wins, the strongest of equal ones (the paper stops its probes by validation labels of the same kind).
            Without it the third is taken.
        l2 (sequence of `float`): Weights of the squared norm, beside the *mean* cross-entropy.

    Returns:
        A fitted classifier of scikit-learn; `predict_proba(features)` is `(N, 2)`.

    Raises:
        ValueError: The labels are all of one class, or they are no labels of these rows.
    """
    features = np.asarray(features)
    weights = probabilities_of(probabilities, "probabilities", len(features))
    if validation is not None:
        validation_classes = probabilities_of(validation[1], "validation", len(validation[0])).argmax(axis=1)
    if (weights.sum(axis=0) == 0).any():
        raise ValueError(
            "probabilities: got labels of one class alone, expected two: there is nothing to tell apart. Look at the "
            "supervisor, or at what was filtered."
        )
    strengths = [l2[min(2, len(l2) - 1)]] if validation is None else sorted(l2, reverse=True)
    best, best_accuracy = None, -1.0
    for strength in strengths:
        probe = make_pipeline(
            StandardScaler(), LogisticRegression(C=1 / (2 * strength * len(features)), max_iter=2000)
        )
        rows_by_class = [weights[:, label] > 0 for label in (0, 1)]
        probe.fit(
            np.concatenate([features[rows] for rows in rows_by_class]),
            np.concatenate([np.full(rows.sum(), label) for label, rows in enumerate(rows_by_class)]),
            logisticregression__sample_weight=np.concatenate(
                [weights[rows, label] for label, rows in enumerate(rows_by_class)]
            ),
        )
        if validation is None:
            return probe
        accuracy = (probe.predict(validation[0]) == validation_classes).mean()
        if accuracy > best_accuracy:
            best, best_accuracy = probe, accuracy
    return best


def out_of_fold(probe: Pipeline, features: np.ndarray, probabilities: np.ndarray, *, n_folds: int = 5) -> np.ndarray:
    """
    Predicts rows with probes that were not fitted to them. With as many features as rows, a probe repeats its labels.

    Args:
        probe ([`~sklearn.pipeline.Pipeline`]): A result of [`logistic_probe`]; the probes of the folds have its `l2`.
        features (`np.ndarray` of shape `(N, D)`), probabilities (`np.ndarray` of shape `(N, 2)`): Labelled rows.
        n_folds (`int`, *optional*, defaults to 5): Number of folds; each is labelled by a probe of the others.

    Returns:
        `np.ndarray` of shape `(N, 2)`, float64.
    """
    probabilities = probabilities_of(probabilities, "probabilities", len(features))
    opinions = np.empty((len(features), 2))
    strength = 1 / (2 * probe[-1].C * len(features))
    for train, held_out in KFold(n_folds, shuffle=True, random_state=0).split(features):
        of_fold = logistic_probe(features[train], probabilities[train], l2=[strength])
        opinions[held_out] = of_fold.predict_proba(features[held_out])
    return opinions


def _n_neighbours(k: int, classes: np.ndarray) -> int:
    """Returns `k`, at most half of the smallest class: more neighbours than it has rows would always outvote it."""
    return max(1, min(k, np.unique(classes, return_counts=True)[1].min() // 2))


def neighbour_labels(
    features: np.ndarray, probabilities: np.ndarray, others: np.ndarray | None = None, *, k: int = 50
) -> np.ndarray:
    """
    Returns the mean label of the `k` nearest rows (Euclidean, standardized features).

    Args:
        features (`np.ndarray` of shape `(N, D)`), probabilities (`np.ndarray` of shape `(N, 2)`): Labelled rows.
        others (`np.ndarray` of shape `(M, D)`, *optional*): Rows to label; by default the labelled ones, without
            counting a row among its own neighbours.
        k (`int`, *optional*, defaults to 50): Number of neighbours (EleutherAI/w2s, which reads the middle layer, has
            the same default); at most half of the rows of the rarer hard label.

    Returns:
        `np.ndarray` of shape `(M, 2)`, float64.
    """
    probabilities = probabilities_of(probabilities, "probabilities", len(features))
    scaler = StandardScaler().fit(features)
    k = _n_neighbours(k, probabilities.argmax(axis=1))
    neighbours = NearestNeighbors(n_neighbors=k).fit(scaler.transform(features))
    queries = None if others is None else scaler.transform(others)
    nearest = neighbours.kneighbors(queries, return_distance=False)
    return probabilities[nearest].mean(axis=1)


def doubtful(labels: np.ndarray, second_opinion: np.ndarray, share: float = 0.1) -> np.ndarray:
    """
    Selects the `share` of rows with labels furthest from a second opinion, `(N,)` bool, by `(N, 2)` probabilities.

    Ties are broken by position. 10 % is the contamination that EleutherAI/w2s assumes.
    """
    labels = probabilities_of(labels, "labels")
    distance = np.abs(labels[:, 1] - probabilities_of(second_opinion, "second_opinion", len(labels))[:, 1])
    worst = np.argsort(-distance, kind="stable")[: round(share * len(distance))]
    dropped = np.zeros(len(distance), dtype=bool)
    dropped[worst] = True
    return dropped


def topological_filter(features: np.ndarray, labels: np.ndarray, *, k: int = 50) -> np.ndarray:
    """
    Selects the rows in the main body of their class; the others are likely mislabelled (Wu et al. 2020, TopoFilter).

    The graph leads from each row to its `k` nearest ones. Each class keeps its largest strongly connected component,
    and in it the rows most of whose neighbours in such components are of their class. (EleutherAI/w2s compares with
    the neighbours' mean label instead of that vote.)

    Args:
        features (`np.ndarray` of shape `(N, D)`): Standardized here.
        labels (`np.ndarray` of shape `(N,)`): Hard labels of the supervisor.
        k (`int`, *optional*, defaults to 50): Number of neighbours; at most half of the rows of the rarest class.

    Returns:
        `np.ndarray` of shape `(N,)`, bool: the rows to keep.
    """
    labels = np.asarray(labels)
    if labels.ndim != 1 or len(labels) != len(features):
        raise ValueError(
            f"labels: got the shape {labels.shape}, expected ({len(features)},), one class per row of features. For "
            "probabilities, give their argmax(axis=1)."
        )
    graph = csr_array(kneighbors_graph(StandardScaler().fit_transform(features), _n_neighbours(k, labels)))
    classes, own = np.unique(labels, return_inverse=True)
    in_body = np.zeros(len(labels), dtype=bool)
    for label in classes:
        rows = np.flatnonzero(labels == label)
        _, component = connected_components(graph[rows][:, rows], connection="strong")
        in_body[rows[component == np.bincount(component).argmax()]] = True
    neighbours = graph[:, in_body]
    n_of_class = np.stack([neighbours[:, labels[in_body] == label].sum(axis=1) for label in classes], axis=1)
    return in_body & (2 * n_of_class[np.arange(len(labels)), own] > n_of_class.sum(axis=1))


def plot_probes(entries: Sequence[dict], path: Path) -> None:
    """
    Plots the accuracy of the weak labels after each correction, and of the students that were trained on them.

    Args:
        entries (sequence of `dict`): The results of the analysis, one entry per seed: `labels`, each correction with
            `label_accuracy`, `accuracy` and `pgr`; `weak` and `ceiling`.
        path (`Path`): A `.png` file.
    """
    ways = list(entries[0]["labels"])
    names = {way: way.replace(" by ", "\nby ").replace(", ", ",\n") for way in ways}
    before = float(over_seeds(entries, "labels", ways[0], "label_accuracy").mean())
    roles = (("weak", "weak\nsupervisor"), ("ceiling", "strong\nceiling"))
    heights = {name: float(over_seeds(entries, key).mean()) for key, name in roles}

    def panel(key: str, **options):
        values = {names[way]: over_seeds(entries, "labels", way, key) for way in ways}
        colours = {names[way]: "grey" if way == ways[0] else "blue" for way in ways}
        return lambda axes: bars(axes, values, colours=colours, **options)

    labels = panel(
        "label_accuracy",
        ylabel="accuracy of labels",
        title="training labels, against ground truth",
        heights={"as\nthey are": before},
    )
    students = panel(
        "accuracy",
        ylabel=f"test accuracy, n = {entries[0]['n_test']}",
        title="naive students that learned them",
        heights=heights,
        notes={names[way]: pgr_note(entries, "labels", way) for way in ways},
        intervals={names[way]: intervals_of(entries, "labels", way) for way in ways},
    )
    width = 1.8 + 1.0 * len(ways)
    draw(path, [(width, labels)], [(width, students)])


def probes_section(entries: Sequence[dict]) -> str:
    """Returns the results in Markdown: means over the seeds, median PGR. Arguments as in [`plot_probes`]."""
    rows = []
    for way in entries[0]["labels"]:
        of_way = ("labels", way)
        cells = [mean_cell(entries, *of_way, key, digits=0) for key in ("n_train", "n_class_1")]
        cells.append(mean_cell(entries, *of_way, "label_accuracy"))
        rows.append([way, *cells, accuracy_cell(entries, *of_way), pgr_cell(entries, *of_way)])
    header = ["weak labels", "rows", "of class 1", "accuracy of labels", "accuracy of student", "PGR"]
    return render("analysis_probes.md", labels=markdown_table(header, rows))
