"""One public trainer a file."""

from .weak_to_strong import WeakToStrongTrainer

__all__ = ["WeakToStrongTrainer"]
