# /// script
# requires-python = ">=3.11"
# dependencies = ["w2s_hf[chess]"]
#
# [tool.uv.sources]
# w2s_hf = { path = "..", editable = true }
# ///
"""Runs weak-to-strong generalization on chess puzzles: the models write the best move.

The embedded demo, knight forks (no network, no GPU; two minutes on two CPU cores). It needs python-chess:

    pip install "chess>=1.11,<2"
    accelerate launch recipes/chess.py

The Lichess puzzles of the paper, with Qwen2.5-0.5B as supervisor and a 4-bit LoRA student of 7B, on one GPU:

    accelerate launch recipes/chess.py --config single_gpu_chess

Your own models and puzzles:

    accelerate launch recipes/chess.py --weak_model gpt2 --student_model gpt2-xl --dataset_path data/puzzles.csv

The puzzles are a local directory or file. Its columns are the columns of EleutherAI/lichess-puzzles (ctx, target) or
of the Lichess puzzle table (FEN, Moves, Rating, ...).

If puzzles have ratings, --max_train_rating 1000 also measures how well students of easy puzzles solve hard puzzles.
"""

import sys
from pathlib import Path

# Python searches the directory of a script for modules first, where chess.py has the name of python-chess.
sys.path[:] = [entry for entry in sys.path if Path(entry or ".").resolve() != Path(__file__).resolve().parent]

from w2s_hf.cli import recipe

if __name__ == "__main__":
    recipe("chess_puzzles", __doc__)
