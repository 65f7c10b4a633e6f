"""The analyses of a finished experiment: functions on arrays and models, figures, and sections of the report.

The option `--analyses` runs them; `w2s_hf.experiments.analyses` trains the models that they need.
"""

from ..tasks.prompt import PromptFormat
from .agreement import compare_answers, compare_probabilities
from .early_stopping import choose_stops
from .probes import doubtful, last_hidden_states, logistic_probe, neighbour_labels, out_of_fold, topological_filter
from .prompting import answer_probabilities, balanced_scores, few_shot_prompts
from .weak_errors import ERROR_KINDS, feature_experiment, simulate_labels, with_opinion

__all__ = [
    "ERROR_KINDS",
    "PromptFormat",
    "answer_probabilities",
    "balanced_scores",
    "choose_stops",
    "compare_answers",
    "compare_probabilities",
    "doubtful",
    "feature_experiment",
    "few_shot_prompts",
    "last_hidden_states",
    "logistic_probe",
    "neighbour_labels",
    "out_of_fold",
    "simulate_labels",
    "topological_filter",
    "with_opinion",
]
