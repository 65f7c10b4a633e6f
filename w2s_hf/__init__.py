"""Extends the Hugging Face Trainer for weak-to-strong generalization (Burns et al. 2023).

Public names are imported on first use. `import w2s_hf.losses` therefore needs only torch, and `import w2s_hf.metrics`
needs neither torch nor transformers.
"""

from importlib import import_module
from typing import TYPE_CHECKING

__version__ = "0.1.0"

if TYPE_CHECKING:
    from .cards import Score, StudentCard
    from .config import BootstrapConfig, CompletionConfig, RewardPairConfig, StudentConfig, WeakToStrongConfig
    from .demo.loading import load_demo
    from .experiments.experiment import run_experiment
    from .labels import WeakCompletions, WeakLabels
    from .methods import METHODS, Method
    from .metrics import performance_gap_recovered
    from .modeling import load_student
    from .modeling.adapters import fresh_adapter
    from .results import read_results
    from .tasks import TASKS, Task, load_task
    from .trainers import BootstrapTrainer, CompletionTrainer, RewardPairTrainer, WeakToStrongTrainer

_MODULE_OF_NAME = {
    "Score": "cards",
    "StudentCard": "cards",
    "BootstrapConfig": "config",
    "CompletionConfig": "config",
    "RewardPairConfig": "config",
    "StudentConfig": "config",
    "WeakToStrongConfig": "config",
    "WeakCompletions": "labels",
    "WeakLabels": "labels",
    "METHODS": "methods",
    "Method": "methods",
    "performance_gap_recovered": "metrics",
    "fresh_adapter": "modeling.adapters",
    "load_student": "modeling",
    "read_results": "results",
    "load_demo": "demo.loading",
    "run_experiment": "experiments.experiment",
    "TASKS": "tasks",
    "Task": "tasks",
    "load_task": "tasks",
    "BootstrapTrainer": "trainers",
    "CompletionTrainer": "trainers",
    "RewardPairTrainer": "trainers",
    "WeakToStrongTrainer": "trainers",
}

__all__ = [
    "METHODS",
    "TASKS",
    "BootstrapConfig",
    "BootstrapTrainer",
    "CompletionConfig",
    "CompletionTrainer",
    "Method",
    "RewardPairConfig",
    "RewardPairTrainer",
    "Score",
    "StudentCard",
    "StudentConfig",
    "Task",
    "WeakCompletions",
    "WeakLabels",
    "WeakToStrongConfig",
    "WeakToStrongTrainer",
    "fresh_adapter",
    "load_demo",
    "load_student",
    "load_task",
    "performance_gap_recovered",
    "read_results",
    "run_experiment",
]


def __getattr__(name: str):
    if name not in _MODULE_OF_NAME:
        raise AttributeError(f"module 'w2s_hf' has no attribute {name!r}. Public names: {', '.join(__all__)}.")
    return getattr(import_module(f".{_MODULE_OF_NAME[name]}", __name__), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
