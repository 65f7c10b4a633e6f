"""The performance gap recovered (PGR) as a metric of `evaluate`."""

import datasets
import evaluate
import numpy as np

from w2s_hf.metrics import performance_gap_recovered
from w2s_hf.metrics import pgr_interval
from w2s_hf.metrics import pgr_undefined_reason

_DESCRIPTION = """
PGR = (student - weak) / (ceiling - weak): the share of the accuracy gap between a weak supervisor and a strong ceiling
that a student recovers. The student is trained on labels of the supervisor, the ceiling on ground truth.
"""

_CITATION = """
@article{burns2023weak,
  title={Weak-to-Strong Generalization: Eliciting Strong Capabilities With Weak Supervision},
  author={Burns, Collin and Izmailov, Pavel and Kirchner, Jan Hendrik and others},
  journal={arXiv preprint arXiv:2312.09390},
  year={2023}
}
"""

_INPUTS = """
Args:
    predictions (list of int): Classes predicted by the student for the test rows.
    weak_predictions (list of int): Classes predicted by its supervisor for the same rows.
    ceiling_predictions (list of int): Classes predicted by the ceiling for the same rows.
    references (list of int): True classes.
Returns:
    pgr (float): PGR, or None if the ceiling is not above the supervisor.
    pgr_ci95 (list of two floats): 95 % interval of a paired bootstrap over rows, or None if it is unbounded.
    pgr_undefined (str): Reason why PGR is undefined, or None.
    weak_accuracy, student_accuracy, ceiling_accuracy (float): Accuracies in [0, 1].
Example:
    >>> pgr = evaluate.load("w2s_hf/pgr_metric")
    >>> pgr.compute(predictions=[1, 1, 0, 1], weak_predictions=[1, 0, 0, 1], ceiling_predictions=[1, 1, 0, 0],
    ...             references=[1, 1, 0, 0])["pgr"]
    0.5
"""


@evaluate.utils.file_utils.add_start_docstrings(_DESCRIPTION, _INPUTS)
class PerformanceGapRecovered(evaluate.Metric):
    def _info(self) -> evaluate.MetricInfo:
        names = ("predictions", "weak_predictions", "ceiling_predictions", "references")
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation=_CITATION,
            inputs_description=_INPUTS,
            features=datasets.Features({name: datasets.Value("int64") for name in names}),
        )

    def _compute(self, predictions, weak_predictions, ceiling_predictions, references) -> dict:
        truth = np.asarray(references)
        weak, student, ceiling = (
            np.asarray(classes) == truth for classes in (weak_predictions, predictions, ceiling_predictions)
        )
        scores = {
            "weak_accuracy": float(weak.mean()),
            "student_accuracy": float(student.mean()),
            "ceiling_accuracy": float(ceiling.mean()),
        }
        interval = pgr_interval(weak, student, ceiling)
        return {
            "pgr": performance_gap_recovered(*scores.values()),
            "pgr_ci95": None if interval is None else list(interval),
            "pgr_undefined": pgr_undefined_reason(scores["weak_accuracy"], scores["ceiling_accuracy"]),
            **scores,
        }
