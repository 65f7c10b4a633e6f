"""What can be asked of a finished experiment: functions on arrays and models, with the figure and section of each.

Recipes run them by `--analyses`; `w2s_hf.experiments.analyses` trains what they need.
"""

from .agreement import compare_answers, compare_probabilities
from .early_stopping import SnapshotCallback, choose_stops
from .probes import doubtful, last_hidden_states, logistic_probe, neighbour_labels, topological_filter
from .prompting import PromptFormat, answer_probabilities, few_shot_prompts
from .weak_errors import ERROR_KINDS, feature_experiment, simulate_labels, with_opinion

# What --analyses may name.
ANALYSES = {
    "overfitting": "Overfitting to weak labels",
    "agreement": "Agreement with the supervisor",
    "prompting": "Prompting",
    "saliency": "Saliency",
    "probes": "Weak labels mended by probes",
    "weak_errors": "Which errors a supervisor makes",
}

__all__ = [
    "ANALYSES",
    "ERROR_KINDS",
    "PromptFormat",
    "SnapshotCallback",
    "answer_probabilities",
    "choose_stops",
    "compare_answers",
    "compare_probabilities",
    "doubtful",
    "feature_experiment",
    "few_shot_prompts",
    "last_hidden_states",
    "logistic_probe",
    "neighbour_labels",
    "simulate_labels",
    "topological_filter",
    "with_opinion",
]
