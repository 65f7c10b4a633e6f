"""The embedded demo of chess: knight forks, which a small model can find after pretraining on knight moves.

White has a king and a knight, Black has a king and a queen or rook, and White is to move. In a puzzle, exactly one
knight move gives check and attacks the other black piece at the same time. The pretraining corpus labels single moves
as checks or attacks. The corpus does not contain a position with a fork, or the word `fork`.
"""

import zlib
from collections.abc import Iterator
from dataclasses import dataclass, fields

import chess
import numpy as np
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from .models import DemoModel

__all__ = ["FORK_BANDS", "FORK_MODELS", "FORK_WORDS", "ForkConfig", "ForkWorld", "has_decoy", "is_fork", "position_of"]

# These words in a prompt name the kind of move. Puzzles have `fork`, and the corpus has the other words.
FORK_WORDS = ("fork", "check", "hits", "quiet", "takes")
# The bands of difficulty differ in the other knight moves. In `decoys`, a second knight move gives check, and a third
# knight move attacks the queen or rook.
FORK_BANDS = ("no decoys", "decoys")
_PIECES = ("K", "N", "k", "q", "r")
_SPECIAL_TOKENS = ("<pad>", "<bos>", "<eos>")
_WORDS = (*_SPECIAL_TOKENS, ".", ":", *FORK_WORDS, *_PIECES, *chess.SQUARE_NAMES)
_ID_OF_WORD = {word: index for index, word in enumerate(_WORDS)}
# Positions are drawn in blocks of this size, so that a larger sample begins with the positions of a smaller sample.
_BLOCK_SIZE = 8192
# A check, attack or capture has this weight in the choice of a move. A quiet move has weight 1.
_EAGERNESS = 4


@dataclass(frozen=True)
class ForkConfig:
    """
    The shares of documents in the corpus by kind of move. Only 10 % of random moves would give check, which is too few
    to learn forks.

    Args:
        check_share (`float`, *optional*, defaults to 0.40): Moves that give check.
        hits_share (`float`, *optional*, defaults to 0.40): Moves that attack the queen or rook.
        takes_share (`float`, *optional*, defaults to 0.05): Moves that take the queen or rook.
        quiet_share (`float`, *optional*, defaults to 0.15): All other moves.

    Raises:
        ValueError: A share is not positive, or the shares do not sum to 1.
    """

    check_share: float = 0.40
    hits_share: float = 0.40
    takes_share: float = 0.05
    quiet_share: float = 0.15

    def __post_init__(self):
        shares = [getattr(self, field.name) for field in fields(self)]
        if min(shares) <= 0 or abs(sum(shares) - 1) > 1e-9:
            raise ValueError(
                f"Got the shares {shares} of the corpus, expected positive numbers that sum to 1. "
                "Change the shares, or leave all shares out for the defaults."
            )


# The models are the weak supervisor `scratch-32x1`, the pretrained students by size, and the student `scratch-64x2`
# without pretraining. Sizes and learning rates are the results of measurements.
FORK_MODELS: dict[str, DemoModel] = {
    model.name: model
    for model in (
        DemoModel("scratch-32x1", width=32, n_layers=1, mlp_width=80),
        DemoModel("scratch-64x2", width=64, n_layers=2, mlp_width=160, n_heads=4),
        DemoModel("pretrained-64x1", 64, 1, mlp_width=160, n_documents=50_000, n_heads=4, batch_size=64),
        DemoModel("pretrained-64x2", 64, 2, mlp_width=160, n_documents=100_000, n_heads=4, batch_size=64),
    )
}


def _tables() -> tuple[np.ndarray, ...]:
    """
    Returns four tables, each `(64, 64)` bool. They show whether two squares are a knight's move apart, a king's move
    apart, on one rank or file, or on one diagonal.
    """
    rank, file = np.divmod(np.arange(64), 8)
    d_rank, d_file = np.abs(rank[:, None] - rank), np.abs(file[:, None] - file)
    other = (d_rank > 0) | (d_file > 0)
    knight = (d_rank * d_file == 2) & other
    return (
        knight,
        (np.maximum(d_rank, d_file) == 1),
        ((d_rank == 0) | (d_file == 0)) & other,
        (d_rank == d_file) & other,
    )


_KNIGHT, _KING, _LINE, _DIAGONAL = _tables()


def _between() -> np.ndarray:
    """Returns `(64, 64, 64)` bool: whether the last square is between the first two, on a line or diagonal."""
    rank, file = np.divmod(np.arange(64), 8)
    aligned = _LINE | _DIAGONAL
    inside = np.zeros((64, 64, 64), dtype=bool)
    for a, b in zip(*np.nonzero(aligned), strict=True):
        step = np.sign(rank[b] - rank[a]) * 8 + np.sign(file[b] - file[a])
        inside[a, b, np.arange(a + step, b, step)] = True
    return inside


_BETWEEN = _between()
# The targets are the eight knight moves and the eight king moves from each square, padded with -1: (64, 8).
_KNIGHT_TARGETS, _KING_TARGETS = (
    np.array([np.pad(np.flatnonzero(row), (0, 8 - row.sum()), constant_values=-1) for row in table])
    for table in (_KNIGHT, _KING)
)


def _attacks(is_queen: np.ndarray, origin: np.ndarray, square: np.ndarray, *blockers: np.ndarray) -> np.ndarray:
    """
    Returns whether a queen or rook on `origin` attacks `square`, given the squares of other pieces (`blockers`).
    The result is bool and has the shape of the arguments.
    """
    attacks = _LINE[origin, square] | (is_queen & _DIAGONAL[origin, square])
    for blocker in blockers:
        attacks &= ~_BETWEEN[origin, square, blocker]
    return attacks


@dataclass(frozen=True)
class _Positions:
    """
    The squares of the pieces in `n` positions, each `(n,)` int64 from 0 (a1) to 63 (h8). `other` is Black's queen or
    rook.
    """

    king: np.ndarray
    knight: np.ndarray
    black_king: np.ndarray
    other: np.ndarray
    is_queen: np.ndarray

    def __getitem__(self, rows: np.ndarray) -> "_Positions":
        return _Positions(*(getattr(self, field.name)[rows] for field in fields(self)))

    def __len__(self) -> int:
        return len(self.king)

    @classmethod
    def draw(cls, rng: np.random.Generator) -> "_Positions":
        """Draws a block of random legal positions in which White is not in check and the knight is not pinned."""
        squares = rng.integers(64, size=(4, _BLOCK_SIZE))
        is_queen = rng.random(_BLOCK_SIZE) < 0.5
        king, knight, black_king, other = squares
        distinct = (np.sort(squares, axis=0)[1:] != np.sort(squares, axis=0)[:-1]).all(axis=0)
        legal = distinct & ~_KING[king, black_king] & ~_KNIGHT[knight, black_king]
        # The knight itself is not a blocker here, which also excludes positions in which it is pinned.
        legal &= ~_attacks(is_queen, other, king, black_king)
        return cls(king, knight, black_king, other, is_queen)[np.flatnonzero(legal)]

    def knight_moves(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Returns the targets of the knight `(n, 8)`, and whether each is legal, gives check, and attacks `other`."""
        targets = _KNIGHT_TARGETS[self.knight]
        legal = (targets >= 0) & (targets != self.king[:, None])
        return (
            targets,
            legal,
            legal & _KNIGHT[targets, self.black_king[:, None]],
            legal & _KNIGHT[targets, self.other[:, None]],
        )

    def king_moves(self) -> tuple[np.ndarray, np.ndarray]:
        """Returns the targets of White's king `(n, 8)`, and whether each is legal, `(n, 8)` bool."""
        targets = _KING_TARGETS[self.king]
        columns = (self.black_king, self.other, self.is_queen, self.knight)
        black_king, other, is_queen, knight = (np.broadcast_to(column[:, None], targets.shape) for column in columns)
        attacked = (targets != other) & _attacks(is_queen, other, targets, black_king, knight)
        return targets, (targets >= 0) & (targets != knight) & ~_KING[targets, black_king] & ~attacked

    def fork(self) -> np.ndarray:
        """Returns the target `(n,)` of the only fork, -1 if there is none, or -2 if there are several."""
        targets, _, checks, hits = self.knight_moves()
        both = checks & hits
        only = np.take_along_axis(targets, both.argmax(axis=1)[:, None], axis=1)[:, 0]
        return np.where(both.sum(axis=1) == 1, only, np.where(both.any(axis=1), -2, -1))

    def puzzles(self) -> np.ndarray:
        """Returns whether a position has exactly one fork and White cannot take a piece, `(n,)` bool."""
        takes = _KNIGHT[self.knight, self.other] | _KING[self.king, self.other]
        return (self.fork() >= 0) & ~takes

    def words(self, row: int) -> list[str]:
        """Returns the words of a position: `K d3 N c2 k b6 r b1`."""
        pieces = ("K", "N", "k", "q" if self.is_queen[row] else "r")
        squares = (self.king[row], self.knight[row], self.black_king[row], self.other[row])
        return [word for piece, square in zip(pieces, squares, strict=True) for word in (piece, _name(square))]

    def orbits(self) -> np.ndarray:
        """
        Returns a number for each position `(n,)`. Positions that are symmetric to each other have the same number.
        """
        squares = np.stack([self.king, self.knight, self.black_king, self.other])
        rank, file = np.divmod(squares, 8)
        codes = []
        for r, f in ((rank, file), (file, rank)):
            for flip_r in (r, 7 - r):
                for flip_f in (f, 7 - f):
                    codes.append(np.ravel_multi_index(tuple(flip_r * 8 + flip_f), (64,) * 4))
        return np.min(codes, axis=0) * 2 + self.is_queen


def _name(square: int) -> str:
    return chess.SQUARE_NAMES[square]


def position_of(words: str) -> chess.Board:
    """Returns the board of a prompt that begins with a position such as `K d3 N c2 k b6 r b1`. White is to move."""
    board = chess.Board(None)
    parts = words.split()[:8]
    for piece, square in zip(parts[::2], parts[1::2], strict=True):
        board.set_piece_at(chess.parse_square(square), chess.Piece.from_symbol(piece))
    return board


def is_fork(board: chess.Board, move: chess.Move) -> bool:
    """
    Returns whether a knight's move gives check, Black has a reply, and after every reply the knight can take the queen
    or rook. The function does not check whether Black's king can then take the knight.
    """
    if board.piece_type_at(move.from_square) != chess.KNIGHT or not board.gives_check(move):
        return False
    board.push(move)
    try:
        replies = list(board.legal_moves)
        return bool(replies) and all(_can_take_after(board, reply, move.to_square) for reply in replies)
    finally:
        board.pop()


def _can_take_after(board: chess.Board, reply: chess.Move, knight: int) -> bool:
    board.push(reply)
    try:
        prey = board.pieces(chess.QUEEN, chess.BLACK) | board.pieces(chess.ROOK, chess.BLACK)
        return any(board.is_legal(chess.Move(knight, square)) for square in prey)
    finally:
        board.pop()


def _is_proved(board: chess.Board, fork: chess.Move) -> bool:
    """Checks with python-chess that a position is valid, allows no capture, and has only this fork."""
    moves = list(board.legal_moves)
    return (
        board.is_valid()
        and not any(board.is_capture(move) for move in moves)
        and [move for move in moves if is_fork(board, move)] == [fork]
    )


def has_decoy(board: chess.Board) -> bool:
    """Returns whether another knight move gives check, and another knight move attacks the queen or rook."""
    (knight,) = board.pieces(chess.KNIGHT, chess.WHITE)
    (prey,) = board.pieces(chess.QUEEN, chess.BLACK) | board.pieces(chess.ROOK, chess.BLACK)
    moves = [move for move in board.legal_moves if move.from_square == knight]
    n_checks = sum(board.gives_check(move) for move in moves)
    n_hits = sum(bool(_KNIGHT[move.to_square, prey]) for move in moves)
    return n_checks > 1 and n_hits > 1


class ForkWorld:
    """
    The puzzles, the corpus and the tokenizer of a seed.

    All random numbers come from named streams. Equal seed, stream and arguments give equal rows in any process.

    Args:
        config ([`ForkConfig`], *optional*): Defaults to the configuration of the published results.
        seed (`int`, *optional*, defaults to `0`): The seed of the world, at least 0.
    """

    def __init__(self, config: ForkConfig | None = None, seed: int = 0):
        self.config = ForkConfig() if config is None else config
        self.seed = seed

    def _blocks(self, stream: str) -> Iterator[tuple[_Positions, np.random.Generator]]:
        rng = np.random.default_rng(np.random.SeedSequence([self.seed, zlib.crc32(stream.encode())]))
        while True:
            yield _Positions.draw(rng), rng

    def tokenizer(self) -> PreTrainedTokenizerFast:
        """Returns a case-sensitive tokenizer of whole words that adds `<bos>` in front."""
        tokenizer = Tokenizer(models.WordLevel(dict(_ID_OF_WORD), unk_token="<pad>"))
        tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
        tokenizer.post_processor = processors.TemplateProcessing(
            single="<bos> $A", pair="<bos> $A $B", special_tokens=[("<bos>", _ID_OF_WORD["<bos>"])]
        )
        tokenizer.add_special_tokens([AddedToken(token, special=True) for token in _SPECIAL_TOKENS])
        return PreTrainedTokenizerFast(
            tokenizer_object=tokenizer,
            pad_token="<pad>",
            bos_token="<bos>",
            eos_token="<eos>",
            model_max_length=32,
            clean_up_tokenization_spaces=False,
            model_input_names=["input_ids", "attention_mask"],
        )

    def puzzles(self, n: int, stream: str = "puzzles") -> list[dict]:
        """
        Generates distinct puzzles. No two puzzles are equal up to the symmetries of the board. python-chess verifies
        each puzzle.

        Args:
            n (`int`): Number of puzzles. A larger sample begins with the puzzles of a smaller sample.
            stream (`str`, *optional*, defaults to `"puzzles"`): Name of the random stream.

        Returns:
            `list[dict]` of length `n` with `id`, `ctx` (`K d3 N c2 k b6 r b1 fork :`), `target` (` c2 a1`), `fen`,
            `band` (one of `FORK_BANDS`) and `GameId` (different for each puzzle).

        Raises:
            ValueError: There are fewer than `n` puzzles.
        """
        rows: list[dict] = []
        known_orbits: set[int] = set()
        for block, _ in self._blocks(stream):
            block = block[np.flatnonzero(block.puzzles())]
            targets, orbits, n_before = block.fork().tolist(), block.orbits().tolist(), len(rows)
            for row, (target, orbit) in enumerate(zip(targets, orbits, strict=True)):
                if orbit in known_orbits:
                    continue
                words = block.words(row)
                board = position_of(" ".join(words))
                if not _is_proved(board, chess.Move(block.knight[row].item(), target)):
                    continue
                known_orbits.add(orbit)
                prompt = " ".join([*words, FORK_WORDS[0], ":"])
                move = f" {words[3]} {_name(target)}"
                band = FORK_BANDS[has_decoy(board)]
                game = f"{orbit:08}"  # each puzzle is a separate game
                rows.append(
                    {
                        "id": f"fork-{orbit}",
                        "ctx": prompt,
                        "target": move,
                        "fen": board.fen(),
                        "band": band,
                        "GameId": game,
                    }
                )
                if len(rows) == n:
                    return rows
            if len(rows) == n_before:
                break  # a block of thousands of positions had no new puzzle, so almost all puzzles are listed
        raise ValueError(
            f"Got {n} puzzles, expected at most {len(rows)}, the number of puzzles in the demo. Set smaller values of "
            "--n_train, --n_weak, --n_validation or --n_test, or fewer links."
        )

    def corpus(self, n_documents: int, stream: str = "corpus") -> np.ndarray:
        """
        Generates the pretraining corpus. Each document has a position without a fork, the kind of a move, and the
        move.

        Args:
            n_documents (`int`): Number of documents. A larger corpus begins with the documents of a smaller corpus.
            stream (`str`, *optional*, defaults to `"corpus"`): Name of the random stream.

        Returns:
            `np.ndarray` of shape `(n_documents, 15)`, int64: The token ids of documents such as
            `<bos> K d6 N a1 k h8 r e2 quiet : d6 c6 . <eos>`.
        """
        config = self.config
        words = ("check", "hits", "takes", "quiet")
        shares = [getattr(config, f"{word}_share") for word in words]
        rng = np.random.default_rng(np.random.SeedSequence([self.seed, zlib.crc32(f"{stream} classes".encode())]))
        # The kinds of all documents are drawn first. Then positions are drawn until each kind has enough positions.
        kinds = np.searchsorted(np.cumsum(shares)[:-1], rng.random(n_documents), side="right")
        n_missing = np.bincount(kinds, minlength=len(words))
        pools: list[list[np.ndarray]] = [[] for _ in words]
        for block, block_rng in self._blocks(stream):
            documents, kind = self._documents(block, block_rng)
            for index in np.flatnonzero(n_missing > 0).tolist():
                matches = documents[kind == index][: n_missing[index]]
                pools[index].append(matches)
                n_missing[index] -= len(matches)
            if not n_missing.any():
                break
        corpus = np.empty((n_documents, 15), dtype=np.int64)
        for index, pool in enumerate(pools):
            if pool:
                corpus[kinds == index] = np.concatenate(pool)
        return corpus

    @staticmethod
    def _documents(block: _Positions, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """Returns a document for each position without a fork `(n, 15)`, and the number of its kind `(n,)`."""
        block = block[np.flatnonzero(block.fork() == -1)]
        targets, legal, checks, hits = block.knight_moves()
        king_targets, king_legal = block.king_moves()
        targets, legal = np.hstack([targets, king_targets]), np.hstack([legal, king_legal])
        none = np.zeros_like(king_legal)
        takes = legal & (targets == block.other[:, None])
        kind = np.select([takes, np.hstack([checks, none]), np.hstack([hits, none])], [2, 0, 1], default=3)
        # One move is drawn per position. Quiet moves are less likely.
        weight = rng.random(targets.shape)
        weight = np.where(kind == 3, weight, weight ** (1 / _EAGERNESS))
        move = np.where(legal, weight, -1).argmax(axis=1)
        rows = np.flatnonzero(legal.any(axis=1))
        move, block = move[rows], block[rows]
        target, kind = targets[rows, move], kind[rows, move]
        origin = np.where(move < 8, block.knight, block.king)
        word_ids = np.array([_ID_OF_WORD[word] for word in ("check", "hits", "takes", "quiet")])
        first_square = _ID_OF_WORD[chess.SQUARE_NAMES[0]]

        def token(word: str) -> np.ndarray:
            return np.full(len(rows), _ID_OF_WORD[word])

        pieces = [token("K"), token("N"), token("k"), np.where(block.is_queen, token("q"), token("r"))]
        squares = [first_square + square for square in (block.king, block.knight, block.black_king, block.other)]
        position = [column for pair in zip(pieces, squares, strict=True) for column in pair]
        answer = [word_ids[kind], token(":"), first_square + origin, first_square + target, token("."), token("<eos>")]
        return np.stack([token("<bos>"), *position, *answer], axis=1), kind
