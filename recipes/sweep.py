# /// script
# requires-python = ">=3.11"
# dependencies = ["w2s_hf[chess,ray]"]
#
# [tool.uv.sources]
# w2s_hf = { path = "..", editable = true }
# ///
"""Runs a sweep: tasks x supervisors x students x methods x seeds in one table, with figures of size and PGR.

The embedded demo with three student sizes (no network, no GPU; minutes on two CPU cores):

    accelerate launch recipes/sweep.py

Your own grid:

    accelerate launch recipes/sweep.py --cell_config single_gpu --tasks boolq sciq
        --weak_models Qwen/Qwen2.5-0.5B --student_models Qwen/Qwen2.5-0.5B Qwen/Qwen2.5-1.5B Qwen/Qwen2.5-7B
        --methods naive confidence --seeds 0 1 2 --n_train 4000 --output_dir /shared/sweep

The demo on a Ray cluster whose machines share the output directory (pip install "ray>=2.40,<3"):

    python recipes/sweep.py --config sweep_demo --engine ray --ray_address auto

If a sweep is stopped, repeat the command to resume it.
"""

import sys
from pathlib import Path

# Python searches the directory of a script for modules first, where chess.py has the name of python-chess.
sys.path[:] = [entry for entry in sys.path if Path(entry or ".").resolve() != Path(__file__).resolve().parent]

from w2s_hf.cli import sweep

if __name__ == "__main__":
    sweep(__doc__)
