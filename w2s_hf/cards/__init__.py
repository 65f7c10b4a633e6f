"""Model cards: what they say as data, and the templates that say it."""

from .score import Score
from .student_card import BLOCK, FIGURE, ROWS, SCHEMA, StudentCard

__all__ = ["BLOCK", "FIGURE", "ROWS", "SCHEMA", "Score", "StudentCard"]
