"""Pretrains small language models on the moves of real games, for `recipes/chess.py` to finetune.

    python recipes/benchmarks/chess_ladder.py --games_path data/games --output_dir ladder \\
        --models weak:128x2:20000 strong:256x4:400000
    accelerate launch recipes/chess.py --weak_model ladder/weak --student_model ladder/strong --dataset_path ...

A model is given as NAME:WIDTHxLAYERS:POSITIONS, where POSITIONS is the number of its training positions. The games
have the columns of Lichess/standard-chess-games (`movetext`, or `uci`, which is faster to read). A training text is
the prompt of a FEN puzzle with the move that was played. Zero-shot, the model imitates the players of the games.
Tokens are characters.
"""

import argparse
import io
from collections.abc import Iterator
from pathlib import Path

import chess.pgn
import numpy as np
import torch
from datasets import Dataset, load_dataset
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast, Trainer, TrainingArguments, set_seed

from w2s_hf.command_line import CommandLine, HelpFormatter
from w2s_hf.tasks.chess import fen_prompt

CHARACTERS = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789 /-+#=.:\n"


def make_tokenizer() -> PreTrainedTokenizerFast:
    vocabulary = {token: index for index, token in enumerate(["<pad>", "<eos>", *CHARACTERS])}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="<pad>"))
    backend.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    backend.decoder = decoders.Fuse()
    special = {"pad_token": "<pad>", "eos_token": "<eos>"}
    names = ["input_ids", "attention_mask"]
    return PreTrainedTokenizerFast(tokenizer_object=backend, model_input_names=names, **special)


def positions(games: Dataset, n: int, seed: int) -> Iterator[str]:
    """Yields `n` positions with the moves played. Each pass over the games takes at most eight positions per game."""
    rng = np.random.default_rng(seed)
    n_yielded = 0
    while n_yielded < n:
        for index in rng.permutation(len(games)).tolist():
            row = games[index]
            if row.get("uci"):
                moves = [chess.Move.from_uci(move) for move in row["uci"].split()]
            else:
                moves = list(chess.pgn.read_game(io.StringIO(row["movetext"])).mainline_moves())
            if len(moves) < 10:
                continue
            board, plies = chess.Board(), set(rng.integers(4, len(moves), size=8).tolist())
            for ply, move in enumerate(moves):
                if ply in plies:
                    yield f"{fen_prompt(board)} {board.san(move)}<eos>"
                    n_yielded += 1
                    if n_yielded == n:
                        return
                board.push(move)


def pretrain(name: str, width: int, n_layers: int, rows: Dataset, output_dir: Path, args: argparse.Namespace) -> None:
    tokenizer = make_tokenizer()
    set_seed(args.seed)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=3 * width,
        num_hidden_layers=n_layers,
        num_attention_heads=max(2, width // 32),
        max_position_embeddings=160,
        tie_word_embeddings=True,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
    )

    def collate(rows: list[dict]) -> dict[str, torch.Tensor]:
        batch = tokenizer([row["text"] for row in rows], padding=True, return_tensors="pt")
        return {**batch, "labels": batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)}

    training = TrainingArguments(
        output_dir=str(output_dir / name),
        num_train_epochs=1,
        per_device_train_batch_size=args.batch_size,
        learning_rate=args.learning_rate,
        lr_scheduler_type="cosine",
        warmup_steps=0.05,
        weight_decay=0.1,
        adam_beta2=0.98,
        bf16=torch.cuda.is_available(),
        logging_steps=0.05,
        save_strategy="no",
        remove_unused_columns=False,
        report_to="none",
        seed=args.seed,
    )
    network = LlamaForCausalLM(config)
    print(f"{name}: {network.num_parameters() / 1e6:.1f} million parameters, {len(rows)} positions", flush=True)
    trainer = Trainer(model=network, args=training, train_dataset=rows, data_collator=collate)
    trainer.train()
    network.save_pretrained(output_dir / name)
    tokenizer.save_pretrained(output_dir / name)


def main() -> None:
    parser = CommandLine(description=__doc__, formatter_class=HelpFormatter)
    parser.add_argument("--games_path", required=True, help="Local directory with the games, or dataset on the Hub.")
    parser.add_argument(
        "--output_dir",
        type=Path,
        required=True,
        help="Directory in which each model is saved in a folder with its name.",
    )
    parser.add_argument(
        "--models",
        nargs="+",
        required=True,
        metavar="NAME:WIDTHxLAYERS:POSITIONS",
        help="Names, shapes and numbers of training positions of the models to pretrain.",
    )
    parser.add_argument("--batch_size", type=int, default=64, help="Number of positions per optimizer step.")
    parser.add_argument("--learning_rate", type=float, default=1e-3, help="Peak learning rate of the pretraining.")
    parser.add_argument(
        "--seed", type=int, default=0, help="Seed of the initial weights and of the choice of positions."
    )
    args = parser.parse_args()
    games = load_dataset(args.games_path, split="train")
    for model in args.models:
        name, shape, n = model.split(":")
        width, n_layers = map(int, shape.split("x"))
        rows = Dataset.from_dict({"text": list(positions(games, int(n), args.seed))})
        pretrain(name, width, n_layers, rows, args.output_dir, args)


if __name__ == "__main__":
    main()
