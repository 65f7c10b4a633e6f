"""PGR by task, supervisor, student and method, read from the model cards of students: on the Hub, or on this disk.

    python recipes/leaderboard.py ME/boolq-Qwen2.5-7B-from-Qwen2.5-0.5B-naive-seed0 ME/boolq-...-seed1
    python recipes/leaderboard.py outputs/boolq outputs/chess_puzzles --output leaderboard.md

A directory is that of a student, or one with students or a sweep below it. Students that were trained with the same
settings on the same rows, such as several seeds, share one line: means of the accuracies, and the median of PGR with
its range in brackets. A line with one student has the 95 % interval of its PGR. Settings that differ between lines of
the same task are columns.
"""

import argparse
import sys
from pathlib import Path

from w2s_hf.cards.markdown import as_text, markdown_table
from w2s_hf.command_line import CommandLine
from w2s_hf.leaderboard import find_cards, leaderboard, readable


def main() -> None:
    description, _, details = __doc__.partition("\n\n")
    form = argparse.RawDescriptionHelpFormatter
    parser = CommandLine(description=description, epilog=details, formatter_class=form)
    parser.add_argument("students", nargs="+", help="Hub ids, or directories")
    parser.add_argument("--output", type=Path, metavar="FILE", help="write the table, too: .md, .csv or .json")
    args = parser.parse_args()
    if args.output is not None and args.output.suffix not in (".md", ".csv", ".json"):
        parser.error(f"--output: got {args.output}, expected a .md, .csv or .json file.")
    try:
        table = leaderboard(find_cards(args.students))
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
    text = readable(table)
    print(text.to_string(index=False))
    if args.output is not None:
        args.output.parent.mkdir(parents=True, exist_ok=True)
        markdown = markdown_table([as_text(name) for name in text], text.map(as_text).to_numpy().tolist()) + "\n"
        data = {".md": markdown, ".csv": table.to_csv(index=False), ".json": table.to_json(orient="records", indent=2)}
        args.output.write_text(data[args.output.suffix], encoding="utf-8")


if __name__ == "__main__":
    main()
