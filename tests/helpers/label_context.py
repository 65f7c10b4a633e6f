"""A context for label transforms whose students are logistic regressions, in a world that they can learn."""

from dataclasses import dataclass, field

import numpy as np
from datasets import Dataset
from scipy.special import softmax
from sklearn.linear_model import LogisticRegression

from w2s_hf.labels import WeakLabels
from w2s_hf.transforms import LabelContext


@dataclass
class FakeContext(LabelContext):
    """The features are the hidden states. No method reads `truth`."""

    rows: Dataset
    is_train: np.ndarray
    weak_labels: WeakLabels
    features: np.ndarray
    predictions: np.ndarray  # of the base model
    validation: tuple[np.ndarray, np.ndarray]
    truth: np.ndarray
    seed: int = 0
    trained: list[tuple[WeakLabels, list[str]]] = field(default_factory=list)  # labels and predicted ids of students

    @property
    def supervisors(self) -> tuple[WeakLabels, ...]:
        return (self.weak_labels,)

    def zero_shot(self) -> np.ndarray:
        return self.predictions

    def hidden_states(self) -> np.ndarray:
        return self.features

    def supervisor_validation(self) -> tuple[np.ndarray, np.ndarray]:
        return self.validation

    def train_student(self, labels: WeakLabels, predict: Dataset) -> np.ndarray:
        position = {row_id: index for index, row_id in enumerate(self.ids)}
        rows, asked = ([position[row_id] for row_id in ids] for ids in (labels.ids, predict["id"]))
        self.trained.append((labels, list(predict["id"])))
        student = LogisticRegression(C=10).fit(self.features[rows], labels.probabilities.argmax(axis=1))
        predictions = np.zeros((len(asked), labels.probabilities.shape[1]), dtype=np.float32)
        predictions[:, student.classes_] = student.predict_proba(self.features[asked])
        return predictions

    def once(self, make):
        return make()


def make_context(
    n_classes: int = 2, *, n_train: int = 400, n_validation: int = 60, error: float = 0.2, seed: int = 0
) -> FakeContext:
    """
    Makes rows with a linear rule, a supervisor with random errors, and a base model that prefers class 0.

    The labels of the supervisor are in another order than the rows. They include rows that are not in the context.
    """
    rng = np.random.default_rng(seed)
    n_rows = n_train + n_validation
    n_all = n_rows + n_validation  # with the validation rows of the supervisor
    features = rng.normal(size=(20 * n_all, 4))
    scores = features @ rng.normal(size=(4, n_classes))
    second, first = np.sort(scores, axis=1)[:, -2:].T
    clear = np.flatnonzero(first - second > 0.5)[:n_all]  # students with few errors in their labels find this rule
    features, scores = features[clear].astype(np.float32), scores[clear]
    truth = scores.argmax(axis=1)
    is_wrong = rng.permutation(n_all) < round(error * n_all)
    hard = np.where(is_wrong, (truth + rng.integers(1, n_classes, n_all)) % n_classes, truth)
    of_supervisor = softmax(2 * np.eye(n_classes)[hard] + rng.uniform(size=(n_all, n_classes)), axis=1)
    of_base = softmax(scores + 2 * np.eye(n_classes)[0] + rng.normal(size=scores.shape), axis=1)
    ids = [f"row {index}" for index in range(n_all)]
    order = rng.permutation(n_all)
    return FakeContext(
        rows=Dataset.from_dict({"id": ids[:n_rows], "text": [f"text {index}" for index in range(n_rows)]}),
        is_train=np.arange(n_rows) < n_train,
        weak_labels=WeakLabels(
            [ids[row] for row in order], of_supervisor[order], {"model": "weak", "stage": "weak-1"}
        ),
        features=features[:n_rows],
        predictions=of_base[:n_rows].astype(np.float32),
        validation=(of_supervisor[n_rows:], truth[n_rows:]),
        truth=truth[:n_rows],
        seed=seed,
    )
