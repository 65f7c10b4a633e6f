"""The trainers of the package."""

from .bootstrap import BootstrapTrainer
from .completion import CompletionTrainer
from .reward_pair import RewardPairTrainer
from .weak_to_strong import WeakToStrongTrainer

__all__ = ["BootstrapTrainer", "CompletionTrainer", "RewardPairTrainer", "WeakToStrongTrainer"]
