"""Chess puzzles: the best move of a position, as text that follows a transcript, a FEN, or any prompt.

Needs python-chess, the extra `chess`: `pip install w2s_hf[chess]`.
"""

from .puzzles import CHESS_PUZZLES, BrokenPuzzleError, ChessTask, fen_prompt, load_puzzles, transcript

__all__ = ["CHESS_PUZZLES", "BrokenPuzzleError", "ChessTask", "fen_prompt", "load_puzzles", "transcript"]
