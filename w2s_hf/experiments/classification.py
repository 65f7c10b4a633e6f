"""The older name of [`run_experiment`] for texts, kept for backward compatibility."""

from .experiment import run_experiment

__all__ = ["run_classification"]


def run_classification(*args, **kwargs) -> dict:
    """Runs [`run_experiment`] and returns the content of `results.json`."""
    return run_experiment(*args, **kwargs).to_dict()
