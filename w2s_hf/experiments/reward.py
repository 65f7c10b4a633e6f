"""The first name of [`run_experiment`] for pairs, kept for those who import it."""

from .experiment import run_experiment as run_reward

__all__ = ["run_reward"]
