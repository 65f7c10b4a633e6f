"""Where an interrupted training goes on."""

import logging
import shutil
from pathlib import Path

from accelerate import PartialState
from accelerate.utils import broadcast_object_list
from transformers import TrainerState

__all__ = ["last_complete_checkpoint"]

logger = logging.getLogger(__name__)


def last_complete_checkpoint(directory: Path) -> str | None:
    """
    The newest checkpoint of a [`~transformers.Trainer`] that was written to its end; unfinished ones, left by a kill,
    are removed (`transformers.trainer_utils.get_last_checkpoint` would return them). Rank 0 looks, the others are
    told.
    """
    state = PartialState()
    found: list[str | None] = [None]
    if state.is_main_process:
        complete = []
        for checkpoint in Path(directory).glob("checkpoint-*"):
            try:
                # The last file that the Trainer writes.
                step = TrainerState.load_from_json(str(checkpoint / "trainer_state.json")).global_step
                complete.append((step, str(checkpoint)))
            except (OSError, ValueError, TypeError):
                logger.warning(f"{checkpoint.name} is incomplete (a run was stopped while writing it): removed")
                shutil.rmtree(checkpoint)
        found = [max(complete)[1] if complete else None]
    if state.num_processes > 1:
        broadcast_object_list(found, from_process=0)
    return found[0]
