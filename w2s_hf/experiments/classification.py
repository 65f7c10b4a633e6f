"""The first name of [`run_experiment`] for texts, kept for those who import it."""

from .experiment import run_experiment as run_classification

__all__ = ["run_classification"]
