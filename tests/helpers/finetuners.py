"""Finetuners of all settings."""

from types import SimpleNamespace

from datasets import Dataset

from helpers.models import make_character_tokenizer, make_language_model, make_model, make_tokenizer
from helpers.preferences import explicit_text, pairs_of
from helpers.puzzles import random_rows
from helpers.training import arguments, completion_arguments, pair_arguments, reward_model
from w2s_hf.experiments.cache import StageCache
from w2s_hf.experiments.finetuner import Finetuner
from w2s_hf.experiments.settings.classification import CLASSIFICATION
from w2s_hf.experiments.settings.generation import GenerationSetting
from w2s_hf.experiments.settings.reward import REWARD
from w2s_hf.tasks import PREFERENCE_TASKS
from w2s_hf.tasks.chess import CHESS_PUZZLES


def rows_of(kind: str) -> Dataset:
    if kind == "chess":
        examples = [CHESS_PUZZLES.example(row) for row in random_rows(24)]
    elif kind == "reward":
        examples = [PREFERENCE_TASKS["anthropic_hh"].example(row) for row in pairs_of(explicit_text, 24)]
    else:
        texts = [f"w{n} w{n % 7} w{n % 11}" for n in range(24)]
        spans = {"context_start": 0, "context_end": 0, "shorten_from": "end"}
        examples = [{"id": str(n), "text": text, "ground_truth": n % 2, **spans} for n, text in enumerate(texts)]
    return Dataset.from_list(examples)


def splits_of(class_names=("no", "yes")) -> SimpleNamespace:
    """Returns the attributes of splits that a finetuner reads."""
    return SimpleNamespace(provenance={}, task=SimpleNamespace(class_names=class_names))


def finetuner_of(kind: str, tmp_path, model_path) -> tuple[Finetuner, Dataset]:
    """Returns a finetuner of a setting and its rows, and saves the model that it loads."""
    if kind == "chess":
        make_language_model(make_character_tokenizer()).save_pretrained(model_path)
        make_character_tokenizer().save_pretrained(model_path)
        args, setting = completion_arguments(tmp_path, max_new_tokens=6), GenerationSetting(CHESS_PUZZLES)
    else:
        (make_model("llama") if kind == "classification" else reward_model()).save_pretrained(model_path)
        make_tokenizer().save_pretrained(model_path)
        args = arguments(tmp_path) if kind == "classification" else pair_arguments(tmp_path)
        setting = CLASSIFICATION if kind == "classification" else REWARD
    return Finetuner(StageCache(tmp_path / "stages"), setting, args), rows_of(kind)
