"""Weak-to-strong generalization on chess puzzles: what is the best move? The models write it.

The embedded demo, knight forks (no network, no GPU; two minutes on two CPU cores), after pip install -e ".[chess]":

    accelerate launch recipes/chess.py

Lichess puzzles as the paper has them, with Qwen2.5-0.5B as supervisor and a 4-bit LoRA student of 7B, on one GPU:

    accelerate launch recipes/chess.py --config recipes/configs/single_gpu_chess.yaml

Your own models, and puzzles in a local directory or file, in the columns of EleutherAI/lichess-puzzles (ctx, target)
or of the Lichess puzzle table (FEN, Moves, Rating, ...):

    accelerate launch recipes/chess.py --weak_model gpt2 --student_model gpt2-xl --dataset_path data/puzzles.csv

Where puzzles have ratings, --max_train_rating 1000 also asks how far learning from easy ones carries to hard ones.
"""

import sys
from pathlib import Path

# Started as a script, Python looks for modules beside this file first, and would take it for python-chess.
sys.path[:] = [entry for entry in sys.path if Path(entry or ".").resolve() != Path(__file__).resolve().parent]

from w2s_hf.config import CompletionConfig
from w2s_hf.experiments.cli import finish, parse_arguments, run_recipe
from w2s_hf.experiments.config import ChessArguments
from w2s_hf.experiments.experiment import run_experiment

try:
    from w2s_hf.tasks.chess import CHESS_PUZZLES
except ModuleNotFoundError as error:
    if error.name not in ("chess", "chess.pgn", "chess.svg"):
        raise
    sys.exit(f'error: {error}: chess puzzles need python-chess: pip install -c constraints.txt -e ".[chess]"')

DEMO_CONFIG = Path(__file__).parent / "configs" / "demo_chess.yaml"


def main() -> None:
    args, training_args, student_config = parse_arguments(
        __doc__,
        DEMO_CONFIG,
        experiment=ChessArguments,
        training=CompletionConfig,
        real_config="single_gpu_chess.yaml",
        task=CHESS_PUZZLES.name,
    )
    results = run_experiment(CHESS_PUZZLES, args, training_args, student_config)
    finish(results, args, training_args)


if __name__ == "__main__":
    run_recipe(main)
