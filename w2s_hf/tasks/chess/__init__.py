"""Chess puzzles: the best move of a position, as text that follows a transcript, a FEN, or any prompt.

Needs python-chess, the extra `chess`: `pip install w2s_hf[chess]`.
"""

from .positions import BrokenPuzzleError, fen_prompt, transcript
from .puzzles import CHESS_PUZZLES, ChessTask, load_puzzles

__all__ = ["CHESS_PUZZLES", "BrokenPuzzleError", "ChessTask", "fen_prompt", "load_puzzles", "transcript"]
