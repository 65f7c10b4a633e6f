"""Tests that generated forks are valid by python-chess, distinct up to symmetry, and not in the corpus."""

import itertools
from collections import Counter

import chess
import numpy as np
import pytest

from w2s_hf.demo.forks import FORK_BANDS, ForkConfig, ForkWorld, is_fork, position_of
from w2s_hf.tasks.chess import CHESS_PUZZLES

SYMMETRIES = [
    chess.flip_vertical, chess.flip_horizontal, chess.flip_diagonal, chess.flip_anti_diagonal,
]  # fmt: skip


@pytest.fixture(scope="module")
def world():
    return ForkWorld(seed=3)


@pytest.fixture(scope="module")
def documents(world):
    tokenizer = world.tokenizer()
    return [tokenizer.convert_ids_to_tokens(row) for row in world.corpus(2500).tolist()]


def placements(board: chess.Board) -> set[str]:
    """Returns the pieces of a position and of its mirror images."""
    images = {board.board_fen()}
    for _ in range(3):
        images |= {
            chess.Board(f"{fen} w - - 0 1").transform(flip).board_fen() for fen in images for flip in SYMMETRIES
        }
    return images


def test_puzzles_are_forks_and_no_two_are_mirror_images(world):
    rows, seen, bands = world.puzzles(300), set(), Counter()
    for row in rows:
        board = chess.Board(row["fen"])
        assert board.is_valid() and board.board_fen() == position_of(row["ctx"]).board_fen()
        forks = [move for move in board.legal_moves if is_fork(board, move)]
        assert [f" {move.uci()[:2]} {move.uci()[2:]}" for move in forks] == [row["target"]]
        assert not any(board.is_capture(move) for move in board.legal_moves)
        assert board.board_fen() not in seen
        images = placements(board)
        assert len(images) == 8
        seen |= images
        bands[row["band"]] += 1
    assert set(bands) == set(FORK_BANDS) and min(bands.values()) > 100
    assert world.puzzles(20) == rows[:20]
    assert len({row["id"] for row in world.puzzles(3000)}) == 3000
    assert ForkWorld(seed=4).puzzles(20) != rows[:20]


def test_is_fork_by_hand():
    board = position_of("K a1 N c2 k e7 r a8")
    assert not any(is_fork(board, move) for move in board.legal_moves)
    board = position_of("K e1 N b5 k e8 r a8")
    forks = [move.uci() for move in board.legal_moves if is_fork(board, move)]
    assert forks == ["b5c7"]
    board = position_of("K e1 N b5 k d8 r a8")  # a knight on c7 attacks the rook without check
    assert not is_fork(board, chess.Move.from_uci("b5c7"))


def test_the_corpus_says_what_its_moves_do(documents):
    kinds = Counter()
    for words in documents:
        assert (words[0], words[10], words[13], words[14]) == ("<bos>", ":", ".", "<eos>")
        board, move = position_of(" ".join(words[1:9])), chess.Move.from_uci(words[11] + words[12])
        assert board.is_valid() and move in board.legal_moves
        assert not any(is_fork(board, other) for other in board.legal_moves)
        prey = board.pieces(chess.QUEEN, chess.BLACK) | board.pieces(chess.ROOK, chess.BLACK)
        is_knight = board.piece_type_at(move.from_square) == chess.KNIGHT
        attacks = is_knight and chess.BB_KNIGHT_ATTACKS[move.to_square] & int(prey)
        does = "takes" if board.is_capture(move) else "check" if board.gives_check(move) else "hits"
        assert words[9] == (does if does != "hits" or attacks else "quiet")
        kinds[words[9]] += 1
    shares = np.array([kinds[word] for word in ("check", "hits", "takes", "quiet")]) / len(documents)
    np.testing.assert_allclose(shares, [0.40, 0.40, 0.05, 0.15], atol=0.03)


def test_a_longer_corpus_begins_with_a_shorter_one(world):
    assert (world.corpus(300) == world.corpus(2500)[:300]).all()
    assert (ForkWorld(seed=3).corpus(50, "other") != world.corpus(50)).any()


def test_the_tokenizer_reads_pieces_by_their_case_and_ends_with_the_end(world):
    tokenizer = world.tokenizer()
    row = world.puzzles(1)[0]
    ids = tokenizer(f"{row['ctx']}{row['target']}<eos>")["input_ids"]
    assert len(ids) == 14 and ids[0] == tokenizer.bos_token_id and ids[-1] == tokenizer.eos_token_id
    assert tokenizer.decode(ids[1:-1]) == row["ctx"] + row["target"]
    assert tokenizer.convert_tokens_to_ids("K") != tokenizer.convert_tokens_to_ids("k")


def test_a_demo_row_is_a_puzzle_of_the_task(world):
    row = world.puzzles(1)[0]
    example = CHESS_PUZZLES.example(row)
    assert example["prompt"] == row["ctx"] and example["ground_truth"] == row["target"]
    assert example["band"] in FORK_BANDS and example["rating"] == -1


def test_shares_have_to_sum_to_one():
    with pytest.raises(ValueError, match="sum to 1"):
        ForkConfig(check_share=0.5)


def test_more_puzzles_than_there_are_end_in_an_error(monkeypatch):
    blocks = itertools.repeat(next(ForkWorld(seed=0)._blocks("puzzles")))
    monkeypatch.setattr(ForkWorld, "_blocks", lambda self, stream: blocks)
    with pytest.raises(
        ValueError, match="Got 1000000 puzzles, expected at most 1.., the number of puzzles .*--n_train"
    ):
        ForkWorld(seed=0).puzzles(1_000_000)
