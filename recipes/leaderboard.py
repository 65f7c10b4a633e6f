# /// script
# requires-python = ">=3.11"
# dependencies = ["w2s_hf"]
#
# [tool.uv.sources]
# w2s_hf = { path = "..", editable = true }
# ///
"""The command `w2s leaderboard` as a script: PGR of students by task, supervisor, student and method.

python recipes/leaderboard.py ME/boolq-Qwen2.5-7B-from-Qwen2.5-0.5B-naive-seed0 ME/boolq-...-seed1
python recipes/leaderboard.py outputs/boolq outputs/chess_puzzles --output leaderboard.md
"""

from w2s_hf.leaderboard import main

if __name__ == "__main__":
    main()
