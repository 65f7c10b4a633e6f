"""The older name of [`run_experiment`] for chess puzzles, kept for backward compatibility."""

from .experiment import run_experiment

__all__ = ["run_chess"]


def run_chess(*args, **kwargs) -> dict:
    """Runs [`run_experiment`] and returns the content of `results.json`."""
    return run_experiment(*args, **kwargs).to_dict()
