"""Draws boards of a few puzzles for the report, with arrows for the solution and the student's move."""

from pathlib import Path

import chess.svg
from datasets import Dataset

from ...cards.markdown import markdown_table
from ...labels import Completion
from .moves import parse_move
from .scores import scores_of

__all__ = ["draw_boards"]

# The colours are green and vermilion of Okabe and Ito's palette, which colour-blind readers can distinguish.
_RIGHT, _WRONG = "#009E73", "#D55E00"
_SIZE = 240  # size of a board in pixels
_N_EACH = 3


def draw_boards(
    student: list[Completion], weak: list[Completion], test: Dataset, output_dir: Path, student_name: str
) -> str:
    """
    Draws puzzles that the student solved and puzzles that it failed. Solved puzzles that its supervisor failed come
    first.

    Args:
        student, weak (`list[Completion]`): The completions of the test prompts by student and supervisor.
        test ([`~datasets.Dataset`]): Test puzzles with `fen`, `prompt` and `ground_truth`.
        output_dir (`Path`): The directory of the report. SVG files are written to its `figures/boards/`.
        student_name (`str`): The name of the student in headings.

    Returns:
        `str`: A section in Markdown.
    """
    scores, weak_scores = scores_of(student, test), scores_of(weak, test)
    solved = [n for n, score in enumerate(scores) if score.correct and not weak_scores[n].correct]
    solved += [n for n, score in enumerate(scores) if score.correct and weak_scores[n].correct]
    failed = [n for n, score in enumerate(scores) if not score.correct]
    directory = output_dir / "figures" / "boards"
    directory.mkdir(parents=True, exist_ok=True)
    for old in directory.glob("*.svg"):
        old.unlink()
    sections = [f"## Puzzles that the {student_name} solved, and failed"]
    for title, chosen in (("solved", solved[:_N_EACH]), ("failed", failed[:_N_EACH])):
        if not chosen:
            continue
        cells, captions = [], []
        for number, row in enumerate(chosen, start=1):
            name = f"{title}{number}.svg"
            target, answer, fen = test[row]["ground_truth"], student[row].text, test[row]["fen"]
            (directory / name).write_text(_draw(fen, target, scores[row].move))
            board = chess.Board(fen)
            turn = "White" if board.turn else "Black"
            legal = "" if scores[row].move else " (no legal move)"
            student_move = f"student `{_words(answer)}`{legal}, " if title == "failed" else ""
            cells.append(f"![{title}: {fen}](figures/boards/{name})")
            captions.append(
                f"{turn} to move: {student_move}solution `{target.strip()}`, supervisor `{_words(weak[row].text)}`"
            )
        sections.append(markdown_table([title] + [""] * (len(cells) - 1), [cells, captions]))
    sections.append(
        "Green arrow: the solution. Red arrow: the student's move, if it is another legal move. Solved puzzles "
        "that the supervisor failed come first."
    )
    return "\n\n".join(sections)


def _words(text: str) -> str:
    """Returns the first two words of a completion, without characters that break a Markdown table."""
    return " ".join(text.split()[:2]).replace("|", "/").replace("`", "'") or " "


def _draw(fen: str, target: str, answer: str | None) -> str:
    board = chess.Board(fen)
    solution, move = parse_move(target, board), None if answer is None else chess.Move.from_uci(answer)
    moves = ((solution, _RIGHT), (None if move == solution else move, _WRONG))
    arrows = [chess.svg.Arrow(move.from_square, move.to_square, color=colour) for move, colour in moves if move]
    return str(chess.svg.board(board, orientation=board.turn, arrows=arrows, size=_SIZE))
