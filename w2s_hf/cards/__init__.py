"""The content of model cards as data, and the templates that render it."""

from .score import Score
from .student_card import BLOCK, FIGURE, ROWS, SCHEMA, StudentCard

__all__ = ["BLOCK", "FIGURE", "ROWS", "SCHEMA", "Score", "StudentCard"]
