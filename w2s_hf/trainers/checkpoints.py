"""Finds the checkpoint from which an interrupted training run is resumed."""

import logging
import shutil
from pathlib import Path

from accelerate import PartialState
from accelerate.utils import broadcast_object_list
from transformers import TrainerState

__all__ = ["last_complete_checkpoint"]

logger = logging.getLogger(__name__)


def last_complete_checkpoint(directory: Path, *, remove: bool = True) -> str | None:
    """
    Finds the newest complete checkpoint of a [`~transformers.Trainer`], on rank 0 for all ranks.
    (`transformers.trainer_utils.get_last_checkpoint` can also return a checkpoint whose writing was interrupted.)

    Args:
        directory (`Path`): The directory of `checkpoint-1`, `checkpoint-2`, ...
        remove (`bool`, *optional*, defaults to `True`):
            Whether to remove incomplete checkpoints. This is safe only if no other process writes to the directory.
    """
    state = PartialState()
    newest: list[str | None] = [None]
    if state.is_main_process:
        complete = []
        checkpoints = [path for path in Path(directory).glob("checkpoint-*") if path.name[11:].isdecimal()]
        for checkpoint in checkpoints:
            try:
                # The Trainer writes this file last.
                step = TrainerState.load_from_json(str(checkpoint / "trainer_state.json")).global_step
                complete.append((step, str(checkpoint)))
            except (OSError, ValueError, TypeError):
                action = "removed" if remove else "not used"
                logger.warning(f"{checkpoint.name} is incomplete (a run was stopped while writing it): {action}")
                if remove:
                    shutil.rmtree(checkpoint)
        newest = [max(complete)[1] if complete else None]
    if state.num_processes > 1:
        broadcast_object_list(newest, from_process=0)
    return newest[0]
