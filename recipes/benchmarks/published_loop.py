"""
The weak-to-strong experiment as a plain loop with the settings of the published code (openai/weak-to-strong).

All weights are trained in float32 with Adam. The learning rate falls to 0 by a cosine schedule without warm-up. There
is no weight decay, gradient clipping or dropout, and the head of students starts at zero. Each row has its own forward
pass. The logits of a batch are concatenated for one loss and one backward pass. The order of the rows is the same in
every epoch and in predictions.

Four settings differ from the published code, to make the results comparable. The ceiling is trained on the student
half. Long rows are truncated. Incomplete last batches are not dropped. The head of the supervisor is initialized as
in our experiment (`--head_init` applies to students only).
"""

import time
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from accelerate import PartialState
from transformers import AutoModelForSequenceClassification, PreTrainedModel

from w2s_hf import WeakLabels, losses, metrics
from w2s_hf.modeling import load_tokenizer
from w2s_hf.tasks import find_task, load_task, tokenize_rows

BATCH_SIZE = 32


@dataclass
class Run:
    """
    The times and results of a run.

    Args:
        total_seconds (`float`): Time from rows and models on disk to the last score, in seconds.
        seconds (`dict[str, float]`): Time of each stage in seconds: `weak`, `ceiling`, `naive`, `openai`.
        accuracy (`dict[str, float]`): Test accuracy of the model of each stage.
        answers (`dict[str, WeakLabels]`): Class probabilities of the test rows by stage. The probabilities of `weak`
            include the weak labels of the student half.
    """

    total_seconds: float = 0.0
    seconds: dict[str, float] = field(default_factory=dict)
    accuracy: dict[str, float] = field(default_factory=dict)
    answers: dict[str, WeakLabels] = field(default_factory=dict)


@dataclass(frozen=True)
class PublishedLoop:
    """
    The settings of the loop, which [`run`][PublishedLoop.run] executes.

    Args:
        bf16 (`bool`): Whether forward passes run in bfloat16 autocast.
        num_train_epochs (`int`): Epochs of each training run.
        max_length (`int`): Maximum length of a row in tokens.
    """

    bf16: bool
    num_train_epochs: int
    max_length: int

    def run(
        self,
        weak_model: Path,
        strong_model: Path,
        weak_learning_rate: float,
        learning_rate: float,
        dataset_path: str,
        **n_rows: int,
    ) -> Run:
        """Runs all stages. `n_rows` are options of [`w2s_hf.tasks.load_task`], such as `n_train`."""
        run, start = Run(), time.perf_counter()
        splits = load_task(find_task("boolq"), dataset_path=dataset_path, **n_rows)
        tokenizer = load_tokenizer(str(weak_model))  # both models have the same tokenizer
        parts = {"weak": splits.weak_half, "student": splits.student_half, "test": splits.test}
        tokens = {
            name: tokenize_rows(rows, tokenizer, self.max_length)["input_ids"][:] for name, rows in parts.items()
        }
        truth = {name: torch.eye(2)[rows["ground_truth"][:]] for name, rows in parts.items()}

        def score(stage: str, model: PreTrainedModel, *others: str) -> np.ndarray:
            """
            Predicts the parts `others` and the test rows. Scores the test rows, and returns the predictions of
            `others`.
            """
            names = [*others, "test"]
            answers = np.concatenate([self.predict(model, tokens[name], tokenizer.pad_token_id) for name in names])
            of_test = answers[-len(splits.test) :]
            run.accuracy[stage] = float(metrics.is_correct(of_test, np.array(splits.test["ground_truth"])).mean())
            ids = [row_id for name in names for row_id in parts[name]["id"]]
            run.answers[stage] = WeakLabels(ids, answers)
            return answers[: -len(splits.test)]

        with _timed(run, "weak"):
            model = self.finetune(weak_model, tokens["weak"], truth["weak"], weak_learning_rate, head_seed=0)
            weak_labels = torch.from_numpy(score("weak", model, "student"))
        labels_by_stage = {"ceiling": truth["student"], "naive": weak_labels, "openai": weak_labels}
        for stage, labels in labels_by_stage.items():
            with _timed(run, stage):
                has_confidence = stage == "openai"
                model = self.finetune(strong_model, tokens["student"], labels, learning_rate, has_confidence)
                score(stage, model)
        run.total_seconds = time.perf_counter() - start
        return run

    def finetune(
        self,
        path: Path,
        rows: list[list[int]],
        soft_labels: torch.Tensor,
        learning_rate: float,
        has_confidence: bool = False,
        head_seed: int | None = None,
    ) -> PreTrainedModel:
        """Loads a model and trains it. The head starts at zero, or with random numbers if there is a `head_seed`."""
        device = PartialState().device
        model = AutoModelForSequenceClassification.from_pretrained(path, num_labels=2, dtype=torch.float32)
        head = torch.zeros(model.score.weight.shape)
        if head_seed is not None:
            head.normal_(std=model.config.initializer_range, generator=torch.Generator().manual_seed(head_seed))
        model.score.weight.data.copy_(head)
        model.to(device).eval()  # without dropout
        optimizer = torch.optim.Adam(model.parameters(), lr=learning_rate)
        starts = range(0, len(rows), BATCH_SIZE)
        n_steps = self.num_train_epochs * len(starts)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=n_steps)
        for step in range(n_steps):
            batch = slice(starts[step % len(starts)], starts[step % len(starts)] + BATCH_SIZE)
            targets = soft_labels[batch].to(device)
            logits = torch.cat([self._logits(model, torch.tensor([ids], device=device)) for ids in rows[batch]])
            if has_confidence:
                # The batch is the whole optimizer step, so the threshold is computed over the batch.
                weight = losses.openai_warmup(step / n_steps, aux_coef=0.5, warmup_ratio=0.1)
                loss = losses.confidence_loss(logits, targets, aux_weight=weight)
            else:
                loss = losses.cross_entropy_loss(logits, targets)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            schedule.step()
        return model

    @torch.no_grad()
    def predict(self, model: PreTrainedModel, rows: list[list[int]], pad_token_id: int) -> np.ndarray:
        """Returns class probabilities `(N, 2)` in float32, in the order of the rows."""
        probabilities = []
        for start in range(0, len(rows), BATCH_SIZE):
            batch = [torch.tensor(ids, device=model.device) for ids in rows[start : start + BATCH_SIZE]]
            ids = torch.nn.utils.rnn.pad_sequence(batch, batch_first=True, padding_value=pad_token_id)
            mask = torch.nn.utils.rnn.pad_sequence([torch.ones_like(row) for row in batch], batch_first=True)
            probabilities.append(self._logits(model, ids, mask).softmax(dim=-1).cpu().numpy())
        return np.concatenate(probabilities)

    def _logits(
        self, model: PreTrainedModel, ids: torch.Tensor, attention_mask: torch.Tensor | None = None
    ) -> torch.Tensor:
        with torch.autocast(model.device.type, dtype=torch.bfloat16, enabled=self.bf16):
            return model(input_ids=ids, attention_mask=attention_mask).logits.float()


@contextmanager
def _timed(run: Run, stage: str):
    start = time.perf_counter()
    yield
    run.seconds[stage] = time.perf_counter() - start
