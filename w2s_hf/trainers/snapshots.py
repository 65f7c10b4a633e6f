"""Calls a function at evenly spaced steps of a training run, without an effect on its result."""

from collections.abc import Callable

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

__all__ = ["SnapshotCallback", "snapshot_steps"]


class SnapshotCallback(TrainerCallback):
    """
    Calls a function at evenly spaced optimizer steps of a training run, including the last step.

    Args:
        take (`Callable[[int], None]`): The function. Its argument is the number of finished steps. The function may
            predict with the trainer. torch's random state is restored after each call.
        n_snapshots (`int`): The number of calls, at most one per step.

    Raises:
        ValueError: `n_snapshots` is below 1.
    """

    def __init__(self, take: Callable[[int], None], n_snapshots: int):
        if n_snapshots < 1:
            raise ValueError(f"n_snapshots: got {n_snapshots}, expected at least 1. Set it to 1 or more.")
        self.take, self.n_snapshots = take, n_snapshots

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs) -> None:
        """Calls the function if it is due after this optimizer step."""
        if state.global_step in snapshot_steps(state.max_steps, self.n_snapshots):
            # Every data loader draws a random number, which would change the dropout of later steps.
            with torch.random.fork_rng():
                self.take(state.global_step)


def snapshot_steps(n_steps: int, n_snapshots: int) -> set[int]:
    """Returns evenly spaced numbers of finished steps, the last step included."""
    return {round(n_steps * number / n_snapshots) for number in range(1, n_snapshots + 1)} - {0}
