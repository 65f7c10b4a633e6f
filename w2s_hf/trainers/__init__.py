"""One public trainer a file."""

from .completion import CompletionTrainer
from .reward_pair import RewardPairTrainer
from .weak_to_strong import WeakToStrongTrainer

__all__ = ["CompletionTrainer", "RewardPairTrainer", "WeakToStrongTrainer"]
