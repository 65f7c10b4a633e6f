"""Fits simple classifiers on hidden states, to measure model knowledge and to correct weak labels (paper, 5.2.3)."""

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
    Returns the inputs of a classification head.

    For a decoder, the input is the last layer's state of the last token that is not the padding token. For an encoder,
    the input is the state of the first token, pooled if the model pools. Some encoders (DistilBERT, DeBERTa) have
    further layers before the head that are untrained before finetuning. The results of these layers are random
    functions of the encoder's states.

    Args:
        model ([`~transformers.PreTrainedModel`] or [`~peft.PeftModel`]): A sequence classifier in eval mode.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]): Tokenizer that pads.
        tokens ([`~datasets.Dataset`] or a list of encodings): Rows with `input_ids`, without padding.
        batch_size (`int`, *optional*, defaults to 32): Number of rows per batch on each rank.

    Returns:
        `np.ndarray` of shape `(N, hidden size)`, float32, in the order of the rows, on every rank.
    """
    encoded = tokens_of(tokens, "tokens")
    align_padding(model, tokenizer)  # decoders reject batches without a padding token
    head_inputs: list[torch.Tensor] = []
    handle = classification_head(model).register_forward_pre_hook(lambda module, inputs: head_inputs.append(inputs[0]))
    reads_last = hasattr(model, "score")  # the head of a decoder, whose model selects the last token after the head

    def hidden_states(inputs: BatchEncoding) -> np.ndarray:
        model(**inputs.to(model.device))
        hidden = head_inputs.pop().float()
        if hidden.ndim == 3:
            # As in transformers, the last token that is not the padding token is read, even if this token also ends a
            # text.
            is_token = (inputs["input_ids"] != tokenizer.pad_token_id).int()
            last = (is_token * torch.arange(1, hidden.shape[1] + 1, device=is_token.device)).argmax(dim=1)
            hidden = hidden[range(len(hidden)), last if reads_last else 0]
        return hidden.cpu().numpy()

    try:
        return through_model(
            tokenizer, encoded, hidden_states, batch_size=batch_size, padding_side="right", desc="Hidden states"
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
    Fits logistic regression to soft labels. Each row counts for both classes, weighted by its probabilities. Features
    are standardized.

    Args:
        features (`np.ndarray` of shape `(N, D)`): Features of the training rows.
        probabilities (`np.ndarray` of shape `(N, 2)` or `(N,)`): Labels: probabilities, P(class 1) or classes.
        validation (pair of arrays, *optional*): Features and labels for the selection of `l2` by accuracy. In ties,
            the largest value is selected. The paper selects the stopping step of its probes by validation labels of
            the same kind. Without validation rows, the third value is used.
        l2 (sequence of `float`): Weights of the squared norm relative to the *mean* cross-entropy.

    Returns:
        A fitted classifier of scikit-learn; `predict_proba(features)` is `(N, 2)`.

    Raises:
        ValueError: All labels are of one class, or the labels do not match the rows.
    """
    features = np.asarray(features)
    weights = probabilities_of(probabilities, "probabilities", len(features))
    if validation is not None:
        validation_classes = probabilities_of(validation[1], "validation", len(validation[0])).argmax(axis=1)
    if (weights.sum(axis=0) == 0).any():
        raise ValueError(
            "probabilities: got labels of one class, expected two classes. Check the predictions of the supervisor, "
            "or keep more rows if they were filtered."
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
    Predicts rows with probes that were not fitted to them, because a probe with as many features as rows repeats its
    training labels.

    Args:
        probe ([`~sklearn.pipeline.Pipeline`]): A result of [`logistic_probe`], whose `l2` the probes of the folds use.
        features (`np.ndarray` of shape `(N, D)`), probabilities (`np.ndarray` of shape `(N, 2)`): Labelled rows.
        n_folds (`int`, *optional*, defaults to 5): Number of folds. Each fold is predicted by a probe fitted to the
            other folds.

    Returns:
        `np.ndarray` of shape `(N, 2)`, float64.
    """
    probabilities = probabilities_of(probabilities, "probabilities", len(features))
    predictions = np.empty((len(features), 2))
    strength = 1 / (2 * probe[-1].C * len(features))
    for train, held_out in KFold(n_folds, shuffle=True, random_state=0).split(features):
        probe_of_fold = logistic_probe(features[train], probabilities[train], l2=[strength])
        predictions[held_out] = probe_of_fold.predict_proba(features[held_out])
    return predictions


def _n_neighbours(k: int, classes: np.ndarray) -> int:
    """Returns `k`, limited to half of the smallest class, so that other classes do not always outnumber it."""
    return max(1, min(k, np.unique(classes, return_counts=True)[1].min() // 2))


def neighbour_labels(
    features: np.ndarray, probabilities: np.ndarray, others: np.ndarray | None = None, *, k: int = 50
) -> np.ndarray:
    """
    Returns the mean label of the `k` nearest neighbours (Euclidean distance, standardized features).

    Args:
        features (`np.ndarray` of shape `(N, D)`), probabilities (`np.ndarray` of shape `(N, 2)`): Labelled rows.
        others (`np.ndarray` of shape `(M, D)`, *optional*): Rows to label; by default the labelled rows, without
            each row among its own neighbours.
        k (`int`, *optional*, defaults to 50): Number of neighbours, at most half of the rows of the rarer hard label.
            EleutherAI/w2s has the same default, for states of the middle layer.

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
    Selects the `share` of rows whose labels differ most from other predictions, `(N,)` bool.

    `labels` and `second_opinion` are probabilities `(N, 2)`. Ties are broken by position. The default of 10 %
    is the contamination that EleutherAI/w2s assumes.
    """
    labels = probabilities_of(labels, "labels")
    distance = np.abs(labels[:, 1] - probabilities_of(second_opinion, "second_opinion", len(labels))[:, 1])
    worst = np.argsort(-distance, kind="stable")[: round(share * len(distance))]
    is_doubtful = np.zeros(len(distance), dtype=bool)
    is_doubtful[worst] = True
    return is_doubtful


def topological_filter(features: np.ndarray, labels: np.ndarray, *, k: int = 50) -> np.ndarray:
    """
    Selects the rows in the main cluster of their class, because other rows are likely mislabelled (TopoFilter, Wu et
    al. 2020).

    Edges of the graph lead from each row to its `k` nearest neighbours. Each class keeps its largest strongly
    connected component. A row of a component is kept if most of its neighbours in these components have its class.
    (EleutherAI/w2s uses the mean label of the neighbours instead of this vote.)

    Args:
        features (`np.ndarray` of shape `(N, D)`): Features, which this function standardizes.
        labels (`np.ndarray` of shape `(N,)`): Hard labels of the supervisor.
        k (`int`, *optional*, defaults to 50): Number of neighbours, at most half of the rows of the rarest class.

    Returns:
        `np.ndarray` of shape `(N,)`, bool: the rows to keep.
    """
    labels = np.asarray(labels)
    if labels.ndim != 1 or len(labels) != len(features):
        raise ValueError(
            f"labels: got the shape {labels.shape}, expected ({len(features)},), one class per row of features. For "
            "probabilities, pass their argmax(axis=1)."
        )
    graph = csr_array(kneighbors_graph(StandardScaler().fit_transform(features), _n_neighbours(k, labels)))
    classes, own = np.unique(labels, return_inverse=True)
    in_main_cluster = np.zeros(len(labels), dtype=bool)
    for label in classes:
        rows = np.flatnonzero(labels == label)
        _, component = connected_components(graph[rows][:, rows], connection="strong")
        in_main_cluster[rows[component == np.bincount(component).argmax()]] = True
    neighbours = graph[:, in_main_cluster]
    n_of_class = np.stack([neighbours[:, labels[in_main_cluster] == label].sum(axis=1) for label in classes], axis=1)
    return in_main_cluster & (2 * n_of_class[np.arange(len(labels)), own] > n_of_class.sum(axis=1))


def _shown(name: str) -> str:
    """Returns the displayed name of a correction in the results."""
    return name.replace("as they are", "not corrected")


def plot_probes(entries: Sequence[dict], path: Path) -> None:
    """
    Plots the accuracy of the weak labels after each correction, and of the students that were trained on them.

    Args:
        entries (sequence of `dict`): The results of the analysis, one entry per seed. `labels` has `label_accuracy`,
            `accuracy` and `pgr` by correction. `weak` and `ceiling` are accuracies.
        path (`Path`): A `.png` file.
    """
    corrections = list(entries[0]["labels"])
    names = {name: _shown(name).replace(" by ", "\nby ") for name in corrections}
    before = float(over_seeds(entries, "labels", corrections[0], "label_accuracy").mean())
    roles = (("weak", "weak\nsupervisor"), ("ceiling", "strong\nceiling"))
    heights = {name: float(over_seeds(entries, key).mean()) for key, name in roles}

    def panel(key: str, **options):
        values = {shown: over_seeds(entries, "labels", name, key) for name, shown in names.items()}
        colours = {shown: "grey" if name == corrections[0] else "blue" for name, shown in names.items()}
        return lambda axes: bars(axes, values, colours=colours, **options)

    labels = panel(
        "label_accuracy",
        ylabel="label accuracy",
        title="accuracy of training labels",
        heights={"not\ncorrected": before},
    )
    students = panel(
        "accuracy",
        ylabel=f"test accuracy, n = {entries[0]['n_test']}",
        title="students trained on these labels (method naive)",
        heights=heights,
        notes={shown: pgr_note(entries, "labels", name) for name, shown in names.items()},
        intervals={shown: intervals_of(entries, "labels", name) for name, shown in names.items()},
    )
    width = 1.8 + 1.0 * len(corrections)
    draw(path, [(width, labels)], [(width, students)])


def probes_section(entries: Sequence[dict]) -> str:
    """
    Returns the results in Markdown: means over the seeds, median PGR.

    The arguments are described in [`plot_probes`].
    """
    rows = []
    for name in entries[0]["labels"]:
        path = ("labels", name)
        cells = [mean_cell(entries, *path, key, digits=0) for key in ("n_train", "n_class_1")]
        cells.append(mean_cell(entries, *path, "label_accuracy"))
        rows.append([_shown(name), *cells, accuracy_cell(entries, *path), pgr_cell(entries, *path)])
    header = ["weak labels", "training rows", "rows of class 1", "label accuracy", "accuracy of student", "PGR"]
    return render("analysis_probes.md", labels=markdown_table(header, rows))
