"""The chess puzzle task. A model completes a transcript, a FEN or any other prompt with the best move.

The task needs python-chess: `pip install w2s_hf[chess]`.
"""

from .positions import BrokenPuzzleError, fen_prompt, transcript
from .puzzles import CHESS_PUZZLES, ChessTask, load_puzzles

__all__ = ["CHESS_PUZZLES", "BrokenPuzzleError", "ChessTask", "fen_prompt", "load_puzzles", "transcript"]
