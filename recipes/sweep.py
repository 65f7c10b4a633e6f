"""A sweep: tasks x supervisors x students x methods x seeds in one table, with figures of size and PGR.

The embedded demo, three sizes of student (no network, no GPU; minutes on two CPU cores):

    accelerate launch recipes/sweep.py

A grid of your own. Every option that is not listed here is one of the recipes and goes to all cells:

    accelerate launch recipes/sweep.py --cell_config recipes/configs/single_gpu.yaml --tasks boolq sciq
        --weak_models Qwen/Qwen2.5-0.5B --student_models Qwen/Qwen2.5-0.5B Qwen/Qwen2.5-1.5B Qwen/Qwen2.5-7B
        --methods naive confidence --seeds 0 1 2 --n_train 4000 --output_dir /shared/sweep

The same on a Ray cluster whose machines share that folder (after pip install -e ".[ray]"):

    python recipes/sweep.py --config recipes/configs/sweep_demo.yaml --engine ray --ray_address auto

After a stop, the same command continues from the last checkpoint.
"""

import sys
from pathlib import Path

# Started as a script, Python looks for modules beside this file first, and would take chess.py for python-chess.
sys.path[:] = [entry for entry in sys.path if Path(entry or ".").resolve() != Path(__file__).resolve().parent]

from accelerate import PartialState

from w2s_hf.experiments.cli import run_recipe
from w2s_hf.sweep.cli import parse_sweep
from w2s_hf.sweep.run import run_sweep

CONFIGS = Path(__file__).parent / "configs"


def main() -> None:
    args, options = parse_sweep(__doc__, CONFIGS / "sweep_demo.yaml")
    table = run_sweep(args, options, CONFIGS)
    n_failed = int((table["status"] == "failed").sum())
    if PartialState().is_main_process:
        print(f"{len(table)} cells, {n_failed} failed.")
        print(f"{args.output_dir}: report.html, figures/, sweep.csv, sweep.parquet")
    if n_failed:
        sys.exit(f"error: {n_failed} cells failed; report.html says why. The same command tries them again.")


if __name__ == "__main__":
    run_recipe(main)
