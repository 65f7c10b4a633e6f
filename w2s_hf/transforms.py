"""Label transforms: functions that correct, filter or weight the weak labels before students are trained on them.

A label transform is any callable that gets a [`LabelContext`] and returns [`WeakLabels`]. Rows without a label in the
result are not trained on. Set the arguments of a transform with `functools.partial`:

```python
from functools import partial

from w2s_hf.transforms import most_confident

transform = partial(most_confident, share=0.25)
```

No transform of this module reads true labels of the rows that students are trained on.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import replace
from typing import Literal, TypeVar

import numpy as np
from datasets import Dataset
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax, logsumexp, softmax

from .analysis import doubtful, logistic_probe, neighbour_labels, out_of_fold, topological_filter
from .labels import WeakLabels

__all__ = [
    "LabelContext",
    "all_supervisors",
    "balanced",
    "calibrated",
    "confident",
    "confusion_posterior",
    "filtered_by_probe",
    "filtered_by_topology",
    "margin_weighted",
    "most_confident",
    "noisy_channel",
    "refined",
    "relabelled_by_probe",
    "self_labels",
]

T = TypeVar("T")

# Logarithms of smaller probabilities are cut. The value is the smallest normal number in float32, as in the labels.
_SMALLEST = float(np.finfo(np.float32).tiny)
_TEMPERATURES = (0.01, 1000.0)


class LabelContext(ABC):
    """
    The rows that students are trained on, without their true labels, and the predictions of models for these rows.

    All arrays have the N rows of `rows`, in this order. On several ranks, every rank calls the transform. Every rank
    must call `zero_shot`, `hidden_states`, `supervisor_validation`, `train_student` and `once` in the same order.

    Attributes:
        rows ([`~datasets.Dataset`]): N rows: the training rows of the student, then its validation rows. They have
            texts, and their positions as ids, but no ground truth.
        is_train (`np.ndarray` of shape `(N,)`, bool): Whether a row is a training row.
        weak_labels ([`WeakLabels`]): The weak labels of `rows`. With several supervisors, the mean of their labels.
        supervisors (`tuple` of [`WeakLabels`]): The labels of each supervisor.
        seed (`int`): Seed of the experiment.
    """

    rows: Dataset
    is_train: np.ndarray
    weak_labels: WeakLabels
    supervisors: tuple[WeakLabels, ...]
    seed: int

    @property
    def ids(self) -> list[str]:
        """The ids of the rows."""
        return [str(row_id) for row_id in self.rows["id"]]

    @property
    def probabilities(self) -> np.ndarray:
        """The weak labels of the rows, `(N, C)` float32."""
        return self.weak_labels.of(self.ids)

    @abstractmethod
    def zero_shot(self) -> np.ndarray:
        """
        Returns the class probabilities of the strong base model, `(N, C)`. The model is prompted with the prompt of
        the task. Its preference for some answers is not corrected.
        """

    @abstractmethod
    def hidden_states(self) -> np.ndarray:
        """Returns the last hidden states of the strong base model, `(N, H)`."""

    @abstractmethod
    def supervisor_validation(self) -> tuple[np.ndarray, np.ndarray]:
        """
        Returns the probabilities of the supervisor, `(M, C)`, and the true classes, `(M,)`, of the validation rows of
        the *supervisor*. No student is trained on these rows.
        """

    @abstractmethod
    def train_student(self, labels: WeakLabels, predict: Dataset) -> np.ndarray:
        """
        Trains a student, and returns its predictions. The stage is cached.

        Args:
            labels ([`WeakLabels`]): Labels of some of the rows of this context. The student is trained from the base
                model on the training rows among them, with the method `naive`. Validation rows without a label here
                keep the label of the supervisor.
            predict ([`~datasets.Dataset`]): Rows of this context to predict.

        Returns:
            `np.ndarray` of shape `(len(predict), C)`: class probabilities.
        """

    @abstractmethod
    def once(self, make: Callable[[], T]) -> T:
        """
        Calls a function on rank 0, and returns its result on every rank. The last digits of a fit may differ between
        ranks, and keys of the cache depend on them.
        """

    def labels(
        self, probabilities: np.ndarray, weights: np.ndarray | None = None, keep: np.ndarray | None = None
    ) -> WeakLabels:
        """
        Returns new labels of the rows, with the provenance of the weak labels.

        Args:
            probabilities (`np.ndarray` of shape `(N, C)`): Class probabilities of all rows.
            weights (`np.ndarray` of shape `(N,)`, *optional*): Weights of all rows in the loss. By default the labels
                have no weights, and all rows count equally.
            keep (`np.ndarray` of shape `(N,)`, bool, *optional*): The rows with a label in the result. Training rows
                without a label are not trained on. Validation rows without a label keep the label of the supervisor.
                Defaults to all rows.

        Raises:
            ValueError: An array does not have one value per row, or `keep` is not bool.
        """
        n_rows = len(self.rows)
        keep = np.ones(n_rows, dtype=bool) if keep is None else np.asarray(keep)
        for name, values in (("probabilities", probabilities), ("weights", weights), ("keep", keep)):
            if values is not None and len(values) != n_rows:
                raise ValueError(f"{name}: got {len(values)} rows, expected {n_rows}. Pass one value per row.")
        if keep.dtype != bool:
            raise ValueError(f"keep: got {keep.dtype}, expected bool. Pass True for each row with a label.")
        ids = [row_id for row_id, is_kept in zip(self.ids, keep, strict=True) if is_kept]
        if weights is not None:
            weights = np.asarray(weights, dtype=np.float32)[keep]
        return WeakLabels(ids, np.asarray(probabilities)[keep], dict(self.weak_labels.provenance), weights=weights)


# ---- Selection and weights ----


def most_confident(context: LabelContext, *, share: float = 0.5) -> WeakLabels:
    """
    Keeps the training rows of each predicted class with the most confident labels.

    The rows are those of the option `--keep_confident`, see [`WeakLabels.most_confident`]. All validation rows are
    kept.

    Args:
        share (`float`, *optional*, defaults to 0.5): Share of the training rows of each class to keep, in (0, 1].

    Raises:
        ValueError: `share` is out of range.
    """
    _check_share("share", share)
    train_ids = [row_id for row_id, is_train in zip(context.ids, context.is_train, strict=True) if is_train]
    keep = ~context.is_train
    keep[context.is_train] = context.weak_labels.most_confident(train_ids, share)
    return _recorded(context.labels(context.probabilities, keep=keep), most_confident, share=share)


def confident(context: LabelContext, *, band: float = 0.75) -> WeakLabels:
    """
    Keeps the training rows whose most probable class has a probability of at least `band`. All validation rows are
    kept.

    For two classes, the default drops rows with 0.25 < P(class 1) < 0.75. Classes with less confident labels lose more
    rows. [`most_confident`] keeps the same share of each class.

    Source: the confident-only baseline of the automated weak-to-strong researcher (Anthropic Fellows 2026).

    Args:
        band (`float`, *optional*, defaults to 0.75): Smallest probability of the most probable class, in (0, 1].

    Raises:
        ValueError: `band` is out of range, or no training row is left.
    """
    _check_share("band", band)
    probabilities = context.probabilities
    confidence = probabilities.max(axis=1)
    keep = ~context.is_train | (confidence >= band)
    if not (keep & context.is_train).any():
        largest = confidence[context.is_train].max(initial=0)
        raise ValueError(
            f"confident: got no training row with a confidence of at least {band}, expected at least one. The largest "
            f"confidence is {largest:.3f}. Set a smaller band."
        )
    return _recorded(context.labels(probabilities, keep=keep), confident, band=band)


def margin_weighted(context: LabelContext) -> WeakLabels:
    """
    Weights each row by the margin of its weak label: 2 sigmoid(|logit|) - 1.

    `logit` is log(a / b) of the two most probable classes, with probabilities a and b. The weight equals
    (a - b) / (a + b). For two classes, this is |P(class 1) - P(class 0)|. The labels do not change.

    Source: CW-PO, arXiv 2603.04968, whose logit is the difference between two rewards of the weak model.
    """
    probabilities = context.probabilities
    runner_up, best = np.sort(probabilities, axis=1)[:, -2:].T
    return _recorded(context.labels(probabilities, weights=(best - runner_up) / (best + runner_up)), margin_weighted)


# ---- Calibration and models without weak labels ----


def calibrated(context: LabelContext) -> WeakLabels:
    """
    Divides the logits log p of the supervisor by one temperature T > 0, which corrects its confidence.

    T maximizes the likelihood of the true classes of the supervisor's own validation rows. One further observation of
    each class, spread evenly over these rows, keeps T above 0 for a supervisor without errors. T is at least 0.01 and
    at most 1000. A supervisor below chance gets the largest T, which makes its labels almost uniform. The most
    probable class of a row does not change. The provenance records T.

    Source: temperature scaling, Guo et al. 2017. The smoothed targets follow Platt 1999.

    Raises:
        ValueError: There are no validation rows, or true classes do not match the probabilities.
    """
    probabilities, truth = context.supervisor_validation()
    if not len(truth) or len(truth) != len(probabilities):
        raise ValueError(
            f"calibrated: got {len(probabilities)} predictions and {len(truth)} true classes of validation rows, "
            "expected one class per prediction and at least one row. Use validation rows for the supervisor."
        )

    def fit() -> tuple[float, np.ndarray]:
        temperature = _temperature(probabilities, truth)
        return temperature, softmax(_log(context.probabilities) / temperature, axis=1)

    temperature, new = context.once(fit)
    return _recorded(context.labels(new), calibrated, temperature=round(temperature, 4))


def _temperature(probabilities: np.ndarray, truth: np.ndarray) -> float:
    """Returns the temperature of [`calibrated`]."""
    logits, (n_rows, n_classes) = _log(probabilities), probabilities.shape
    targets = (n_rows * np.eye(n_classes)[truth] + 1) / (n_rows + n_classes)

    # The loss is convex in 1 / T, and therefore has one minimum in log T.
    def loss(log_temperature: float) -> float:
        return float(-(targets * log_softmax(logits / np.exp(log_temperature), axis=1)).sum() / n_rows)

    found = minimize_scalar(loss, bounds=np.log(_TEMPERATURES), method="bounded", options={"xatol": 1e-6})
    return float(np.exp(found.x))


def self_labels(context: LabelContext) -> WeakLabels:
    """
    Replaces the weak labels by the zero-shot predictions of the strong base model, balanced by their median.

    The centred log probabilities of a row are log p_c minus their mean over the classes. Their median over the
    training rows is subtracted for each class, and the labels are the softmax of the result. For two classes,
    P(class 1) = sigmoid(logit - median of the logits): each class gets half of the training rows. The labels are
    therefore wrong for classes of unequal size. For more classes, the shares of the classes are similar, not equal.

    This is a baseline: a strong model may do better on its own labels than on weak labels.

    Source: the zero-shot baseline of the automated weak-to-strong researcher (Anthropic Fellows 2026), and the
    unsupervised elicitation of arXiv 2506.10139.
    """
    zero_shot = context.zero_shot()
    return _recorded(context.labels(context.once(lambda: balanced(zero_shot, context.is_train))), self_labels)


def balanced(probabilities: np.ndarray, reference: np.ndarray | None = None) -> np.ndarray:
    """
    Returns probabilities that are balanced by their median, see [`self_labels`].

    Args:
        probabilities (`np.ndarray` of shape `(N, C)`): Class probabilities.
        reference (`np.ndarray` of shape `(N,)`, bool, *optional*): The rows whose median is used. Defaults to all
            rows.

    Returns:
        `np.ndarray` of shape `(N, C)`, float64.
    """
    logits = _log(probabilities)
    logits = logits - logits.mean(axis=1, keepdims=True)
    median = np.median(logits if reference is None else logits[reference], axis=0)
    return softmax(logits - median, axis=1)


# ---- Noisy channel ----


def confusion_posterior(
    prior: np.ndarray,
    labels: np.ndarray,
    *,
    n_iterations: int = 500,
    tolerance: float = 1e-8,
    smoothing: float = 1.0,
) -> tuple[np.ndarray, np.ndarray]:
    """
    Combines a prior with weak labels, whose confusion matrix T is estimated from the rows themselves.

    The posterior of row i is q_i(y) ∝ p_i(y) prod_k T[y, k]^w_ik, with prior p and weak labels w. Expectation
    maximization (EM) alternates between q and T[y, k] = sum_i q_i(y) w_ik / sum_i q_i(y). It starts from a T with 0.8
    on the diagonal. It stops when the penalized log-likelihood grows by less than `tolerance` per row.

    T is identified only through the prior. With a uniform prior, many matrices fit equally well, and the result stays
    near the start. The posterior then only repeats the weak labels. The model assumes three things:

    - The prior is calibrated, including its shares of the classes. An overconfident prior overrules the weak labels.
    - Given the true class, errors of the weak labels are independent of the prior. If both models make the same
      errors, T is too close to the identity.
    - T is the same for all rows. Weak labels that are worse for difficult rows violate this.

    For soft labels, the product is a weighted geometric mean, and T is a mean soft label per class. It is a
    probability of the observed label only for hard labels.

    Source: Dawid and Skene 1979, for one annotator with soft labels and a prior per row.

    Args:
        prior (`np.ndarray` of shape `(N, C)`): Class probabilities of each row without its weak label.
        labels (`np.ndarray` of shape `(N, C)`): Weak labels, soft or hard.
        n_iterations (`int`, *optional*, defaults to 500): Largest number of iterations.
        tolerance (`float`, *optional*, defaults to 1e-8): Smallest gain of an iteration, in nats per row.
        smoothing (`float`, *optional*, defaults to 1.0): Number of observations that are added to each entry of T.
            Entries are then never 0, and a class without rows gets a uniform row.

    Returns:
        The posterior, `(N, C)`, and T, `(C, C)`, both float64. Row y of T has the mean weak label of true class y.

    Raises:
        ValueError: The shapes differ, there are no rows, or `smoothing` is not positive.
    """
    prior, labels = np.asarray(prior, dtype=np.float64), np.asarray(labels, dtype=np.float64)
    if prior.ndim != 2 or prior.shape != labels.shape or not len(prior):
        raise ValueError(
            f"confusion_posterior: got a prior of shape {prior.shape} and labels of shape {labels.shape}, expected "
            "(N, C) for both with at least one row. Pass both arrays for the same rows."
        )
    if smoothing <= 0:
        raise ValueError(f"smoothing: got {smoothing}, expected a positive number. Set 1.0, the default.")
    n_rows, n_classes = labels.shape
    confusion = np.full((n_classes, n_classes), 0.2 / (n_classes - 1))
    np.fill_diagonal(confusion, 0.8)
    previous = -np.inf
    for _ in range(n_iterations):
        log_joint = _log_joint(prior, labels, confusion)
        objective = logsumexp(log_joint, axis=1).sum() + smoothing * np.log(confusion).sum()
        if objective - previous < tolerance * n_rows:
            break
        previous = objective
        counts = softmax(log_joint, axis=1).T @ labels + smoothing
        confusion = counts / counts.sum(axis=1, keepdims=True)
    return softmax(_log_joint(prior, labels, confusion), axis=1), confusion


def _log_joint(prior: np.ndarray, labels: np.ndarray, confusion: np.ndarray) -> np.ndarray:
    """Returns log p_i(y) + sum_k w_ik log T[y, k], `(N, C)`."""
    return _log(prior) + labels @ np.log(confusion).T


def noisy_channel(
    context: LabelContext, *, prior: Literal["zero_shot", "student"] = "zero_shot", n_iterations: int = 500
) -> WeakLabels:
    """
    Replaces the weak labels by a posterior that combines them with predictions of the strong model.

    The weak label is treated as the output of a noisy channel. [`confusion_posterior`] estimates the confusion matrix
    of this channel, and describes the assumptions. The matrix is fitted to the training rows and applied to all rows.
    The provenance records the matrix.

    Source: the noisy-channel idea of the automated weak-to-strong researcher (Anthropic Fellows 2026).

    Args:
        prior (`str`, *optional*, defaults to `"zero_shot"`): Predictions of the strong model. `"zero_shot"` uses
            [`self_labels`]. `"student"` trains two students on the weak labels of one half of the training rows each.
            Each student predicts the other half. Validation rows get the mean of both students. The errors of these
            students follow the errors of the weak labels, so the assumption of independence holds less.
        n_iterations (`int`, *optional*, defaults to 500): Largest number of iterations of EM.

    Raises:
        ValueError: `prior` has another value.
    """
    if prior not in ("zero_shot", "student"):
        raise ValueError(f"prior: got {prior!r}, expected 'zero_shot' or 'student'. Pass one of them.")
    labels, is_train = context.probabilities, context.is_train
    predictions = context.zero_shot() if prior == "zero_shot" else _cross_fitted(context, labels, 0)[0]

    def fit() -> tuple[np.ndarray, np.ndarray]:
        values = balanced(predictions, is_train) if prior == "zero_shot" else predictions
        _, confusion = confusion_posterior(values[is_train], labels[is_train], n_iterations=n_iterations)
        return softmax(_log_joint(values, labels, confusion), axis=1), confusion

    posterior, confusion = context.once(fit)
    return _recorded(
        context.labels(posterior),
        noisy_channel,
        prior=prior,
        n_iterations=n_iterations,
        confusion=confusion.round(4).tolist(),
    )


# ---- Cross-fitted refinement ----


def refined(context: LabelContext, *, rounds: int = 2, max_replaced: float = 0.1) -> WeakLabels:
    """
    Replaces labels that students who were not trained on them contradict (iterative label refinement).

    Each round splits the training rows at random into two halves with the same classes. A student is trained from the
    base model on the current labels of each half, and predicts the other half. A row is a candidate if the class of
    the prediction differs from the class of the current label. Predictions replace the labels of the most confident
    candidates: those with a confidence above 0.5, but at most the share `max_replaced` of each half. Candidates that
    tie with the most confident candidate beyond this share keep their labels.

    Refinement stops after a round without a replacement. The provenance records the number of replaced labels per
    round. Students repeat errors of the supervisor that depend on the text. Refinement does not find such errors.

    Validation rows keep their labels. They select checkpoints of all students. Labels of earlier students would prefer
    checkpoints that repeat those students.

    Source: ILR, arXiv 2501.07886, in a form for classification. Confidence replaces the judge of the paper.

    Args:
        rounds (`int`, *optional*, defaults to 2): Largest number of rounds. Each round trains two students.
        max_replaced (`float`, *optional*, defaults to 0.1): Largest share of labels that a round replaces in each
            half, in (0, 1].

    Raises:
        ValueError: `rounds` or `max_replaced` is out of range.
    """
    if rounds < 1:
        raise ValueError(f"rounds: got {rounds}, expected at least 1. Set a larger number.")
    _check_share("max_replaced", max_replaced)
    current = context.probabilities
    n_replaced: list[int] = []
    for number in range(rounds):
        predictions, halves = _cross_fitted(context, current, number)
        scores = np.where(predictions.argmax(axis=1) != current.argmax(axis=1), predictions.max(axis=1), 0)
        is_replaced = np.zeros(len(scores), dtype=bool)
        for half in halves:
            most = int(max_replaced * half.sum() + 1e-9)  # 0.29 * 100 is less than 29
            threshold = np.append(np.sort(scores[half])[::-1], 0)[most]
            is_replaced |= half & (scores > max(0.5, threshold))
        current = np.where(is_replaced[:, None], predictions, current)
        n_replaced.append(int(is_replaced.sum()))
        if not n_replaced[-1]:
            break
    labels = context.labels(current)
    return _recorded(labels, refined, rounds=rounds, max_replaced=max_replaced, replaced=n_replaced)


def _cross_fitted(
    context: LabelContext, labels: np.ndarray, number: int
) -> tuple[np.ndarray, tuple[np.ndarray, np.ndarray]]:
    """
    Predicts all rows by students that were not trained on them.

    Args:
        labels (`np.ndarray` of shape `(N, C)`): Labels that the students are trained on.
        number (`int`): Number of the random split.

    Returns:
        Predictions, `(N, C)` float32, and the two halves of the training rows, `(N,)` bool each. Validation rows have
        the mean of both students.
    """
    rng, classes = np.random.default_rng([context.seed, number]), labels.argmax(axis=1)
    by_class = [
        rng.permutation(np.flatnonzero(context.is_train & (classes == label))) for label in range(labels.shape[1])
    ]
    first = np.zeros(len(labels), dtype=bool)
    first[np.concatenate(by_class)[::2]] = True  # takes every second row of each class
    halves = first, context.is_train & ~first
    predictions = np.zeros(labels.shape, dtype=np.float32)
    for half, other in (halves, halves[::-1]):
        rows = np.flatnonzero(other | ~context.is_train)
        predictions[rows] += context.train_student(context.labels(labels, keep=half), context.rows.select(rows))
    predictions[~context.is_train] /= 2
    return predictions, halves


# ---- Probes ----


def relabelled_by_probe(context: LabelContext, *, kind: Literal["logistic", "knn"] = "logistic") -> WeakLabels:
    """
    Replaces the weak labels by predictions of a probe on the hidden states of the strong base model. Two classes only.

    Args:
        kind (`str`, *optional*, defaults to `"logistic"`): `"logistic"` uses [`logistic_probe`]: training rows are
            predicted [`out_of_fold`]. `"knn"` uses [`neighbour_labels`]: the mean label of the nearest training rows.

    Raises:
        ValueError: `kind` has another value, or there are more than two classes.
    """
    of_train, of_validation = _probed(context, kind)
    predictions = np.empty_like(context.probabilities)
    predictions[context.is_train], predictions[~context.is_train] = of_train, of_validation
    return _recorded(context.labels(predictions), relabelled_by_probe, kind=kind)


def filtered_by_probe(context: LabelContext, *, kind: Literal["logistic", "knn"] = "logistic") -> WeakLabels:
    """
    Drops the tenth of the training rows whose weak labels differ most from a probe, see [`doubtful`]. All validation
    rows are kept. Two classes only.

    Args:
        kind (`str`, *optional*, defaults to `"logistic"`): See [`relabelled_by_probe`].

    Raises:
        ValueError: `kind` has another value, or there are more than two classes.
    """
    of_train, _ = _probed(context, kind)
    probabilities = context.probabilities
    keep = ~context.is_train
    keep[context.is_train] = ~doubtful(probabilities[context.is_train], of_train)
    return _recorded(context.labels(probabilities, keep=keep), filtered_by_probe, kind=kind)


def filtered_by_topology(context: LabelContext) -> WeakLabels:
    """
    Keeps the training rows in the main cluster of their class, see [`topological_filter`]. All validation rows are
    kept.

    The result has no training rows if no row has most of its neighbours in its class.
    """
    states, probabilities = context.hidden_states(), context.probabilities
    is_train = context.is_train
    keep = ~is_train
    keep[is_train] = context.once(lambda: topological_filter(states[is_train], probabilities[is_train].argmax(axis=1)))
    return _recorded(context.labels(probabilities, keep=keep), filtered_by_topology)


def _probed(context: LabelContext, kind: str) -> tuple[np.ndarray, np.ndarray]:
    """Returns the predictions of a probe for the training rows and the validation rows."""
    if kind not in ("logistic", "knn"):
        raise ValueError(f"kind: got {kind!r}, expected 'logistic' or 'knn'. Pass one of them.")
    states, probabilities, is_train = context.hidden_states(), context.probabilities, context.is_train
    train, validation = states[is_train], states[~is_train]
    labels, labels_of_validation = probabilities[is_train], probabilities[~is_train]

    def fit() -> tuple[np.ndarray, np.ndarray]:
        if kind == "knn":
            return neighbour_labels(train, labels), neighbour_labels(train, labels, validation)
        probe = logistic_probe(train, labels, (validation, labels_of_validation))
        return out_of_fold(probe, train, labels), probe.predict_proba(validation)

    return context.once(fit)


# ---- Several supervisors ----


def all_supervisors(context: LabelContext) -> WeakLabels:
    """
    Adds the labels of each supervisor to their mean, for the loss `learned_supervisors`.

    The student is trained on a weighted combination of these labels, see [`w2s_hf.losses.combined_labels`]. Validation
    rows also have the labels of each supervisor, but a trainer evaluates on their mean.

    Source: RAVEN, arXiv 2510.21332.

    Raises:
        ValueError: There is only one supervisor.
    """
    n_supervisors = len(context.supervisors)
    if n_supervisors < 2:
        raise ValueError(
            f"all_supervisors: got {n_supervisors} supervisor, expected at least 2. Set --n_supervisors to 2 or more."
        )
    of_each = np.stack([labels.of(context.ids) for labels in context.supervisors], axis=1)
    labels = replace(context.labels(context.probabilities), supervisor_probabilities=of_each)
    return _recorded(labels, all_supervisors, n_supervisors=n_supervisors)


# ---- Shared ----


def _log(probabilities: np.ndarray) -> np.ndarray:
    return np.log(np.maximum(np.asarray(probabilities, dtype=np.float64), _SMALLEST))


def _check_share(name: str, value: float) -> None:
    if not 0 < value <= 1:
        raise ValueError(f"{name}: got {value}, expected a number in (0, 1]. Set a number in this range.")


def _recorded(labels: WeakLabels, transform: Callable, **settings) -> WeakLabels:
    """Returns the labels with the name of the transform, its settings and its results in the provenance."""
    record = {"name": transform.__name__, **settings}
    return replace(labels, provenance={**labels.provenance, "transform": record})
