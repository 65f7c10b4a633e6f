"""PGR by task, supervisor, student and method, read from the model cards of students: on the Hub, or on this disk.

    python recipes/leaderboard.py ME/boolq-Qwen2.5-7B-from-Qwen2.5-0.5B-naive-seed0 ME/boolq-...-seed1
    python recipes/leaderboard.py outputs/boolq outputs/chess --output leaderboard.md

A directory is that of a student, or one with students below it. Several students of a kind, such as seeds, come to one
line: means of the accuracies, and the median of PGR with its range in brackets; of one, the 95 % interval of its PGR.
"""

import argparse
import sys
from pathlib import Path

import pandas as pd

from w2s_hf.command_line import CommandLine
from w2s_hf.leaderboard import find_cards, leaderboard
from w2s_hf.markdown import as_text, markdown_table


def shown(table: pd.DataFrame) -> pd.DataFrame:
    """The table for people."""
    pgr = [
        "undefined" if pd.isna(row.pgr) else f"{row.pgr:.2f}"
        + ("" if pd.isna(row.pgr_low) else f" [{row.pgr_low:.2f}, {row.pgr_high:.2f}]")
        for row in table.itertuples()
    ]  # fmt: skip
    text = table[["task", "weak", "student", "method", "n_students"]].rename(columns={"n_students": "students"})
    text = text.map(lambda value: "".join(character for character in str(value) if character.isprintable()))
    for name in ("weak", "student", "ceiling"):
        text[f"{name} acc."] = ["-" if pd.isna(value) else f"{value:.3f}" for value in table[f"{name}_accuracy"]]
    return text.assign(PGR=pgr, undefined=table["n_undefined"].astype(str))


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
    text = shown(table)
    print(text.to_string(index=False))
    if args.output is not None:
        args.output.parent.mkdir(parents=True, exist_ok=True)
        markdown = markdown_table(list(text), text.assign(**text.iloc[:, :4].map(as_text)).to_numpy().tolist()) + "\n"
        data = {".md": markdown, ".csv": table.to_csv(index=False), ".json": table.to_json(orient="records", indent=2)}
        args.output.write_text(data[args.output.suffix], encoding="utf-8")


if __name__ == "__main__":
    main()
