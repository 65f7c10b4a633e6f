"""Rows of tasks, and checks of splits that hold for all tasks."""

import os
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from datasets import Dataset

from w2s_hf import Task

REAL_DATA = Path(os.environ.get("W2S_HF_REAL_DATA", Path(__file__).parents[3] / "shared" / "data"))
FOLDERS = {"anthropic_hh_single": "hh_rlhf", "sciq_with_support": "sciq"}
MESSAGES = [{"message": f"w{i % 7} w{i} w{i * 3 % 50}", "is_spam": ["ham", "spam"][i * 5 % 3 > 0]} for i in range(240)]


def real(name: str) -> str:
    folder = REAL_DATA / FOLDERS.get(name, name)
    if not folder.is_dir():
        pytest.skip(f"no real rows in {folder}")
    return str(folder)


def check(splits):
    """Checks the properties of the splits of any task."""
    groups, texts = {}, set()
    for name, part in splits.parts.items():
        truths, questions, texts_of_part, groups_of_part = (
            part[column][:] for column in ("ground_truth", "question", "text", "group")
        )
        assert np.mean(truths) == 0.5
        right = Counter(q for q, truth in zip(questions, truths, strict=True) if truth and q)
        wrong = Counter(q for q, truth in zip(questions, truths, strict=True) if not truth and q)
        assert right == wrong, "as many right as wrong answers to each question"
        for group, text in zip(groups_of_part, texts_of_part, strict=True):
            assert groups.setdefault(group, name) == name, "a group in two splits"
            text = " ".join(text.casefold().split())
            assert text and text not in texts, "a duplicate"
            texts.add(text)
    assert len(splits.weak_half) / len(splits.student_half) == pytest.approx(1, abs=0.15)
    for name in ("weak", "student"):
        part, half = splits.parts[f"{name}_validation"], splits.parts[f"{name}_half"]
        assert 0.02 < len(part) / len(half) < 0.3


def passages(n, prefix="", yes=0.6, questions_a_passage=3):
    rng = np.random.default_rng(0)
    return Dataset.from_dict(
        {
            "passage": [f"{prefix} passage {i // questions_a_passage} has words" for i in range(n)],
            "question": [f"is {prefix} {i} a number" for i in range(n)],
            "answer": (rng.random(n) < yes).tolist(),
        }
    )


def own_task(**changes) -> Task:
    settings = {"name": "spam", "sources": "messages.csv", "template": "Message: {message}", "label": "is_spam"}
    settings |= {"class_names": ("ham", "spam"), "context": "message", "test_split": None}
    return Task(**settings | changes)
