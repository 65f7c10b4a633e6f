"""The older name of [`run_experiment`] for pairs, kept for backward compatibility."""

from .experiment import run_experiment

__all__ = ["run_reward"]


def run_reward(*args, **kwargs) -> dict:
    """Runs [`run_experiment`] and returns the content of `results.json`."""
    return run_experiment(*args, **kwargs).to_dict()
