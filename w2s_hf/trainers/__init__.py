"""One public trainer a file."""

from .reward_pair import RewardPairTrainer
from .weak_to_strong import WeakToStrongTrainer

__all__ = ["RewardPairTrainer", "WeakToStrongTrainer"]
