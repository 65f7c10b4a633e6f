"""Tests of chess puzzles: prompts from both public schemas, counts of broken rows, and scores of moves."""

import dataclasses

import chess
import numpy as np
import pytest
from datasets import Dataset, DatasetDict
from helpers.models import make_character_tokenizer, merging_tokenizer
from helpers.puzzles import random_rows
from helpers.task_rows import real
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from w2s_hf.tasks.chess import CHESS_PUZZLES, BrokenPuzzleError, load_puzzles, transcript
from w2s_hf.tasks.chess.moves import parse_move, score_move

# The easy puzzle of figure 14 in the paper.
PAPER_PROMPT = (
    "1. d4 1... Nf6 2. Nf3 2... d5 3. e3 3... e6 4. Bd3 4... c5 5. c3 5... Be7 6. Nbd2 6... O-O 7. O-O 7... Nc6 8. "
    "Re1 8... Bd7 9. e4 9... dxe4 10. Nxe4 10... cxd4 11. Nxf6+ 11... Bxf6 12. cxd4 12... Nb4 13. Be4 13... Qb6 14. "
    "a3 14... Nc6 15. d5 15... exd5 16. Bxd5 16... Bf5 17. Bxc6 17... Qxc6 18. Nd4 18... Bxd4 19. Qxd4 19... Rfe8 20. "
    "Rxe8+ 20... Rxe8 21. Be3 21... b6 22. Rc1 22..."
)
PAPER_TARGET = " Qxc1+"


def played(prompt: str) -> chess.Board:
    board = chess.Board()
    for word in prompt.split():
        if not word.endswith("."):
            board.push_san(word)
    return board


def as_table(prompt: str, target: str, **columns) -> dict:
    """Returns the same puzzle as a row of the Lichess table."""
    board = played(prompt)
    answer = board.parse_san(target.strip()).uci()
    last = board.pop()
    return {"PuzzleId": "abc", "FEN": board.fen(), "Moves": f"{last.uci()} {answer} a1a1", "Rating": 695, **columns}


def in_pgn(prompt: str) -> str:
    """Returns the game as players write it, with comments, clocks and move numbers."""
    words = [word for word in prompt.split() if not word.endswith("...")]
    return " ".join(words).replace("1. d4", "1. d4 { [%clk 0:05:00] } 1...", 1) + " Kf8 Qd8+ 1-0"


def test_the_papers_example_character_by_character():
    example = CHESS_PUZZLES.example({"id": "x", "ctx": PAPER_PROMPT, "target": PAPER_TARGET})
    assert example["prompt"] == PAPER_PROMPT and example["ground_truth"] == PAPER_TARGET
    assert transcript(played(PAPER_PROMPT)) == PAPER_PROMPT
    from_table = CHESS_PUZZLES.example(as_table(PAPER_PROMPT, PAPER_TARGET, movetext=in_pgn(PAPER_PROMPT)))
    for name in ("prompt", "ground_truth", "fen", "id"):
        assert from_table[name] == example[name], name


def test_the_papers_other_example_ends_with_42():
    """
    Returns a puzzle with White to move at 42 and the answer ` Qf5`. The position also occurs earlier and later, at
    other move numbers.
    """
    board = chess.Board()
    for san in ["e4", "e5", "Qg4", "Nc6", "d3", "Rb8"] + ["Kd1", "Ra8", "Ke1", "Rb8"] * 19:
        board.push_san(san)
    prompt = transcript(board)
    assert prompt.endswith(" 41. Ke1 41... Rb8 42.")
    example = CHESS_PUZZLES.example(as_table(prompt, " Qf5", movetext=f"{prompt} Kd1 42... Ra8 43. Ke1 Rb8 *"))
    assert (example["prompt"], example["ground_truth"]) == (prompt, " Qf5")


def test_a_row_of_the_table_asks_in_the_position_after_the_opponents_move():
    row = as_table(PAPER_PROMPT, PAPER_TARGET)
    example = CHESS_PUZZLES.example(row)
    board = played(PAPER_PROMPT)
    assert example["prompt"] == f"{board.fen()}\nBest move:" and example["fen"] == board.fen() != row["FEN"]
    assert example["ground_truth"] == PAPER_TARGET and (example["rating"], example["band"]) == (695, "400-799")


@pytest.mark.parametrize(
    ("rating", "expected"),
    [(695, 695), ("695", 695), (695.0, 695), ("", -1), (None, -1), (float("nan"), -1), (float("inf"), -1), ("?", -1)],
)
def test_ratings_of_all_kinds(rating, expected):
    row = as_table(PAPER_PROMPT, PAPER_TARGET) | {"Rating": rating, "movetext": "", "fen": ""}
    example = CHESS_PUZZLES.example(row)
    assert example["rating"] == expected and example["band"] == ("400-799" if expected > 0 else "unrated")


FEN, MOVES = (as_table(PAPER_PROMPT, PAPER_TARGET)[name] for name in ("FEN", "Moves"))


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"ctx": PAPER_PROMPT, "target": " Qxd1"}, "an illegal move"),
        ({"ctx": PAPER_PROMPT, "target": " --"}, "an illegal move"),
        ({"ctx": PAPER_PROMPT.replace("6... O-O", "6... O-O-O"), "target": PAPER_TARGET}, "an illegal move"),
        ({"ctx": PAPER_PROMPT.replace("6... O-O", "6... --"), "target": PAPER_TARGET}, "an illegal move"),
        ({"ctx": "1. -- 1... e5 2.", "target": " e4"}, "an illegal move"),
        ({"ctx": PAPER_PROMPT.replace("4... c5", "5... c5"), "target": PAPER_TARGET}, "a wrong move number"),
        ({"ctx": PAPER_PROMPT.removesuffix(" 22..."), "target": PAPER_TARGET}, "does not end with the number"),
        ({"ctx": PAPER_PROMPT, "target": None}, "an empty field"),
        ({"ctx": PAPER_PROMPT, "target": ""}, "an empty field"),
        ({"ctx": PAPER_PROMPT, "target": " Qxc1+ 23. Bxc1"}, "a target of more than one move"),
        ({"FEN": FEN, "Moves": MOVES.split()}, "a field that is not text"),
        ({"FEN": FEN.replace("k", "n"), "Moves": MOVES}, "an impossible position"),
        ({"FEN": "what", "Moves": MOVES}, "an unreadable position"),
        ({"FEN": FEN, "Moves": MOVES.split()[0]}, "no solution"),
        ({"FEN": FEN, "Moves": "e3e1 c6c1"}, "an illegal move"),
        ({"FEN": FEN, "Moves": f"{MOVES.split()[0]} c6h1"}, "an illegal move"),
        ({"FEN": FEN, "Moves": MOVES, "movetext": "1. e4 e5"}, "a game that does not reach the position"),
    ],
)
def test_broken_rows_say_why(row, reason):
    with pytest.raises(BrokenPuzzleError, match=reason):
        CHESS_PUZZLES.example(row)


def load(train: list[dict], test: list[dict] | None = None, **options):
    raw = DatasetDict(train=Dataset.from_list(train))
    if test is not None:
        raw["test"] = Dataset.from_list(test)
    return load_puzzles(CHESS_PUZZLES, raw=raw, **options)


def test_parts_share_no_game_and_links_have_rows_of_their_own():
    rows = random_rows(180)
    few = {"n_train": 20, "n_weak": 16, "n_validation": 6}
    splits = load(rows[:160], rows[159:], n_links=2, **few)
    assert [len(part) for part in splits.parts.values()] == [16, 3, 20, 3, 21, 20, 3, 20, 3]
    assert set(splits.links) == {"link_1", "link_1_validation", "link_2", "link_2_validation"}
    owners = owners_of_games(splits, rows)
    assert len(owners) > 50 and all(len(parts) == 1 for parts in owners.values())
    assert owners["game0079"] == {"test"}, "its first puzzle is a training row"
    smaller = load(rows[:160], rows[159:], n_links=2, n_test=7, **few)
    assert smaller.test["id"] == splits.test["id"][:7]
    without = load(rows[:160], rows[159:], **few)
    for name, part in without.parts.items():
        assert part["id"] == splits.parts[name]["id"], "a chain does not move rows of other splits"


def owners_of_games(splits, rows: list[dict]) -> dict[str, set[str]]:
    """Returns the splits that contain puzzles of each game."""
    game_of = {CHESS_PUZZLES.example(row)["id"]: row["GameUrl"].split("/")[3].split("#")[0] for row in rows}
    owners: dict[str, set[str]] = {}
    for name, part in splits.parts.items():
        for row_id in part["id"]:
            owners.setdefault(game_of[row_id], set()).add(name)
    return owners


@pytest.mark.parametrize("column", ["GameUrl", "GameId"])
def test_games_are_known_by_either_name(column, caplog):
    rows = random_rows(90)
    named = [{**row, "GameId": row["GameUrl"].removeprefix("https://lichess.org/")} for row in rows]
    for row in named:
        row[{"GameUrl": "GameId", "GameId": "GameUrl"}[column]] = None
    owners = owners_of_games(load(named), rows)
    assert all(len(parts) == 1 for parts in owners.values()) and "do not name their game" not in caplog.text
    load([{**row, "GameId": None, "GameUrl": None} for row in named])
    assert "90 of 90 rows do not name their game" in caplog.text


def test_the_test_set_does_not_depend_on_what_else_is_asked_for():
    rows = random_rows(120)
    expected = (
        {"n_train": 20},
        {"n_train": 30, "n_weak": 10},
        {"n_train": 10, "n_links": 2},
        {"n_train": 8, "n_test": 9},
    )
    tests = [load(rows, **options).test["id"][:] for options in expected]
    assert tests[0] == tests[1] == tests[2] and tests[3] == tests[0][:9]


def test_transcripts_of_one_game_stay_together():
    words = PAPER_PROMPT.split()
    rows = []
    for n_moves in range(6, 40):  # a puzzle at every move of the same game
        prompt = " ".join([*words[: 2 * n_moves], words[2 * n_moves]])
        board = played(prompt)
        rows.append({"id": str(n_moves), "ctx": prompt, "target": f" {board.san(next(iter(board.legal_moves)))}"})
    rng, others = np.random.default_rng(0), []
    for number in range(40):
        board = chess.Board()
        board.push_san(("a3", "a4", "b3", "b4", "c4")[number % 5])
        for _ in range(3):
            moves = list(board.legal_moves)
            board.push(moves[rng.integers(len(moves))])
        others.append({"id": "o", "ctx": transcript(board), "target": f" {board.san(next(iter(board.legal_moves)))}"})
    splits = load(rows + others)
    check_one_part(splits)
    assert sum(len(part) for part in splits.parts.values()) > 60
    check_one_part(load(rows[1:] + others, rows[:1] + others[:5]), "test")


def check_one_part(splits, only: str | None = None):
    owners = {
        name for name, part in splits.parts.items() if any(p.startswith("1. d4 1... Nf6") for p in part["prompt"])
    }
    assert len(owners) == 1 and only in (None, *owners)


def test_what_is_left_out_is_counted(caplog):
    rows = random_rows(60)
    rows[3]["Moves"] = "a1a1 a2a2"
    rows[5]["Moves"] = None
    tokenizer = make_character_tokenizer()
    lengths = [len(CHESS_PUZZLES.example(row)["prompt"]) for row in rows if row["Moves"] not in (None, "a1a1 a2a2")]
    limit = sorted(lengths)[-5]
    splits = load(rows, tokenizers=[tokenizer], max_length=limit + 7, max_new_tokens=7)
    assert splits.n_dropped == {
        "an illegal move": 1,
        "an empty field": 1,
        f"a prompt of more than {limit} tokens": sum(length > limit for length in lengths),
    }
    assert max(len(prompt) for part in splits.parts.values() for prompt in part["prompt"]) <= limit
    assert "A fifth of the games is held out" in caplog.text and "1 with an illegal move" in caplog.text


def test_moves_that_would_be_cut_are_an_error():
    with pytest.raises(ValueError, match="Set --max_new_tokens [5-9]"):
        load(random_rows(30), tokenizers=[make_character_tokenizer()], max_new_tokens=3)


def test_a_task_without_a_test_split_holds_one_out():
    task = dataclasses.replace(CHESS_PUZZLES, test_split=None)
    splits = load_puzzles(task, raw=DatasetDict(train=Dataset.from_list(random_rows(60))))
    assert 8 <= len(splits.test) <= 16


def test_a_path_that_is_not_there_names_both_schemas():
    with pytest.raises(FileNotFoundError, match="with the columns ctx, target: .*; or FEN, Moves: "):
        load_puzzles(CHESS_PUZZLES, dataset_path="nowhere")


def test_unknown_columns_name_both_schemas():
    with pytest.raises(ValueError, match="has the columns question, expected ctx, target: .*; or FEN, Moves: "):
        load([{"question": "best move?"}])


def test_a_tokenizer_that_merges_over_the_boundary_is_refused():
    with pytest.raises(ValueError, match=r"does not keep the end of a prompt: .*Best move:' ends .* ': '"):
        load(random_rows(30), tokenizers=[merging_tokenizer()])


def test_a_tokenizer_that_ends_every_text_is_refused():
    tokenizer = make_character_tokenizer()
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="$A <eos>", special_tokens=[("<eos>", tokenizer.eos_token_id)]
    )
    with pytest.raises(ValueError, match="appends no token to a text"):
        load(random_rows(30), tokenizers=[tokenizer])


def test_a_tokenizer_without_an_end_is_refused():
    backend = Tokenizer(models.WordLevel({"a": 0}, unk_token="a"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    with pytest.raises(ValueError, match="no end-of-text token"):
        load(random_rows(30), tokenizers=[PreTrainedTokenizerFast(tokenizer_object=backend)])


MATES = "6k1/5ppp/8/8/8/8/8/R3R2K w - - 0 1"  # both Ra8 and Re8 are mate
PLAIN = played(PAPER_PROMPT).fen()


@pytest.mark.parametrize(
    ("text", "is_cut", "fen", "target", "expected"),
    [
        (" Qxc1+", False, PLAIN, " Qxc1+", ("c6c1", True, True, True)),
        ("Qxc1+", False, PLAIN, " Qxc1+", ("c6c1", True, False, True)),  # without the leading space
        (" Qxc1", False, PLAIN, " Qxc1+", ("c6c1", True, False, True)),  # without the check mark
        (" Qxc1+ 23. Bxc1", True, PLAIN, " Qxc1+", ("c6c1", True, False, True)),  # zero-shot, the model continues
        (" Qxc1+", True, PLAIN, " Qxc1+", (None, False, False, False)),  # truncated, so it may continue
        (" Qxc1+ ", True, PLAIN, " Qxc1+", ("c6c1", True, False, True)),  # truncated after the move
        (" Qc2", False, PLAIN, " Qxc1+", ("c6c2", False, False, False)),
        (" Qd1", False, PLAIN, " Qxc1+", (None, False, False, False)),  # illegal
        ("", False, PLAIN, " Qxc1+", (None, False, False, False)),
        (" c6 c1", False, PLAIN, " Qxc1+", ("c6c1", True, False, True)),  # squares instead of SAN
        (" c6c1", False, PLAIN, " Qxc1+", ("c6c1", True, False, True)),  # UCI
        (" --", False, PLAIN, " Qxc1+", (None, False, False, False)),  # a null move is not legal
        (
            " 22... Qxc1+",
            False,
            PLAIN,
            " Qxc1+",
            ("c6c1", True, False, True),
        ),  # with the move number at the end of the prompt
        (" 22... Qxc1+", True, PLAIN, " Qxc1+", (None, False, False, False)),
        (" Qxc1+!?.", False, PLAIN, " Qxc1+", ("c6c1", True, False, True)),
        (" Re8#", False, MATES, " Ra8#", ("e1e8", False, False, True)),
        (" Re7", False, MATES, " Ra8#", ("e1e7", False, False, False)),
        (" Re8", False, MATES, " Ra7", ("e1e8", False, False, False)),  # the answer is not a mate
    ],
)
def test_scores_by_hand(text, is_cut, fen, target, expected):
    score = score_move(text, is_cut, target, fen)
    assert (score.move, score.correct, score.exact, score.accepted) == expected


def test_a_square_is_a_pawn_move_before_it_is_half_of_uci():
    assert parse_move(" e4 e5", chess.Board()).uci() == "e2e4"


@pytest.mark.slow
@pytest.mark.real_data
@pytest.mark.parametrize("name", ["gpt2", "qwen2"])
def test_real_puzzles_are_sound_and_tokenizers_keep_the_boundary(name, monkeypatch):
    folder = real("chess_puzzles")
    monkeypatch.setattr("w2s_hf.tasks.chess.puzzles.MAX_ROWS", 3000)
    tokenizer = AutoTokenizer.from_pretrained(f"{real('tokenizers')}/{name}")
    tokenizer.eos_token = tokenizer.eos_token or "<|endoftext|>"
    options = {"tokenizers": [tokenizer], "max_length": 128, "max_new_tokens": 12}
    splits = load_puzzles(CHESS_PUZZLES, dataset_path=folder, n_train=200, n_test=500, **options)
    assert splits.n_dropped == {} and len(splits.test) == 500
    for row in splits.test:
        board = chess.Board(row["fen"])
        assert row["ground_truth"] == f" {board.san(parse_move(row['ground_truth'], board))}"
    # The prompt of the paper, which is longer.
    together = tokenizer(PAPER_PROMPT + PAPER_TARGET)["input_ids"]
    apart = tokenizer(PAPER_PROMPT)["input_ids"] + tokenizer(PAPER_TARGET, add_special_tokens=False)["input_ids"]
    assert together == apart
