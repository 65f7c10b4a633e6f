# /// script
# requires-python = ">=3.11"
# dependencies = ["w2s_hf"]
#
# [tool.uv.sources]
# w2s_hf = { path = "..", editable = true }
# ///
"""Runs weak-to-strong generalization on any task of the package, or on your own task.

The tasks, and the embedded demo with the columns of one task:

    accelerate launch recipes/nlp.py --list_tasks
    accelerate launch recipes/nlp.py --task quail

The real task on one GPU of 24 GB, or with your own models and a local copy of the rows:

    accelerate launch recipes/nlp.py --task quail --config single_gpu
    accelerate launch recipes/nlp.py --task quail --weak_model gpt2 --student_model gpt2-xl --dataset_path data/quail

Real models and rows without a GPU; each model trains in minutes:

    python recipes/nlp.py --task sst2 --config cpu_real

Your own task, defined in a Python file:

    accelerate launch recipes/nlp.py --task my_task.py --config single_gpu
"""

import sys
from pathlib import Path

# Python searches the directory of a script for modules first, where chess.py has the name of python-chess.
sys.path[:] = [entry for entry in sys.path if Path(entry or ".").resolve() != Path(__file__).resolve().parent]

from w2s_hf.cli import recipe

if __name__ == "__main__":
    recipe(None, __doc__)
