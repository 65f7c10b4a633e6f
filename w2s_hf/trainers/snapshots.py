"""A look at a training now and then, which leaves it as it is."""

from collections.abc import Callable

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

__all__ = ["SnapshotCallback", "snapshot_steps"]


class SnapshotCallback(TrainerCallback):
    """
    Calls a function at evenly spaced optimizer steps of a training, the last one among them.

    Args:
        take (`Callable[[int], None]`): Is given the number of finished steps. It may predict with the trainer; torch's
            random state is put back after it.
        n_snapshots (`int`): How often; at most once a step.

    Raises:
        ValueError: fewer than one.
    """

    def __init__(self, take: Callable[[int], None], n_snapshots: int):
        if n_snapshots < 1:
            raise ValueError(f"n_snapshots: got {n_snapshots}, expected at least 1.")
        self.take, self.n_snapshots = take, n_snapshots

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs) -> None:
        """After an optimizer step."""
        if state.global_step in snapshot_steps(state.max_steps, self.n_snapshots):
            # Every data loader draws a number, and dropout would go on from there.
            with torch.random.fork_rng():
                self.take(state.global_step)


def snapshot_steps(n_steps: int, n_snapshots: int) -> set[int]:
    """Evenly spaced numbers of finished steps, the last one among them."""
    return {round(n_steps * number / n_snapshots) for number in range(1, n_snapshots + 1)} - {0}
