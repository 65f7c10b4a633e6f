"""Tests of greedy completions: batch sizes, truncation, and resuming after an interruption."""

import copy
import json
from collections import Counter

import pytest
import torch
from datasets import Dataset
from helpers.models import make_character_tokenizer, make_language_model
from tokenizers import decoders, models, pre_tokenizers
from transformers import GenerationConfig

from w2s_hf import fresh_adapter
from w2s_hf.generation import complete
from w2s_hf.labels import Completion, WeakCompletions

# Prompts of mixed length, so that batches are padded.
PROMPTS = [f"{'abc de ' * (number % 5)}f{number}:" for number in range(33)]


@pytest.fixture(scope="module")
def tokenizer():
    return make_character_tokenizer()


@pytest.fixture(scope="module")
def model(tokenizer):
    """Gives the end-of-text token the embedding of a frequent token, because random weights rarely end a text."""
    model = make_language_model(tokenizer, tie_word_embeddings=False)
    head = model.get_output_embeddings().weight
    head.data[tokenizer.pad_token_id] = 0
    completions = complete(model.eval(), tokenizer, PROMPTS, max_new_tokens=6)
    written = "".join(completion.text[2:] for completion in completions)
    chosen = tokenizer.convert_tokens_to_ids(Counter(written).most_common(1)[0][0])
    head.data[tokenizer.eos_token_id] = 1.02 * head.data[chosen]
    return model


def test_every_batch_size_writes_the_same_in_the_order_asked(model, tokenizer):
    one = complete(model, tokenizer, PROMPTS, max_new_tokens=8, batch_size=1)
    assert len({completion.text for completion in one}) > 5, "with equal completions, the comparison is trivial"
    for batch_size in (4, 16, 100):
        assert complete(model, tokenizer, PROMPTS, max_new_tokens=8, batch_size=batch_size) == one
    backwards = complete(model, tokenizer, PROMPTS[::-1], max_new_tokens=8, batch_size=16)
    assert backwards[::-1] == one


def test_completions_are_what_generate_writes_alone(model, tokenizer):
    for prompt, completion in zip(PROMPTS[:5], complete(model, tokenizer, PROMPTS[:5], max_new_tokens=8), strict=True):
        ids = tokenizer(prompt, return_tensors="pt")
        new = model.generate(**ids, max_new_tokens=8, do_sample=False)[0, ids["input_ids"].shape[1] :]
        text = tokenizer.decode(new)
        assert text.split("<eos>")[0] == completion.text and ("<eos>" not in text) == completion.is_cut


def test_what_the_limit_cuts_is_counted_as_cut(model, tokenizer):
    long = complete(model, tokenizer, PROMPTS, max_new_tokens=8)
    short = complete(model, tokenizer, PROMPTS, max_new_tokens=3)
    assert {completion.is_cut for completion in long} == {True, False}, "the comparison is trivial"
    for a, b in zip(long, short, strict=True):
        assert b.text == a.text[:3] and (b.is_cut or b == a)
        assert a.is_cut == (len(a.text) == 8)


def test_sampling_settings_of_the_model_do_not_count(model, tokenizer):
    expected = complete(model, tokenizer, PROMPTS, max_new_tokens=8)
    before = model.generation_config
    model.generation_config = GenerationConfig(
        do_sample=True, temperature=5.0, repetition_penalty=3.0, max_new_tokens=2, no_repeat_ngram_size=1
    )
    try:
        assert complete(model, tokenizer, PROMPTS, max_new_tokens=8) == expected
    finally:
        model.generation_config = before


def test_sampling_settings_under_adapters_do_not_count_either(model, tokenizer):
    expected = complete(model, tokenizer, PROMPTS, max_new_tokens=8)
    student = fresh_adapter(copy.deepcopy(model), seed=0).eval()
    for owner in (student, student.get_base_model()):
        owner.generation_config = GenerationConfig(no_repeat_ngram_size=1, max_new_tokens=2)
    assert complete(student, tokenizer, PROMPTS, max_new_tokens=8) == expected
    assert student.get_base_model().generation_config.no_repeat_ngram_size == 1, "the setting was lost"


def test_a_completion_keeps_the_space_before_it():
    """If tokens include the space before a word, the first token of a text loses its space."""
    tokenizer = make_character_tokenizer()
    backend = tokenizer.backend_tokenizer
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    backend.decoder = decoders.Metaspace(prepend_scheme="first")
    vocabulary = {"<pad>": 0, "<eos>": 1, "▁a:": 2, "▁b": 3}
    backend.model = models.WordLevel(vocabulary, unk_token="<pad>")
    model = make_language_model(tokenizer, tie_word_embeddings=False).eval()
    model.get_output_embeddings().weight.data.zero_()
    model.get_output_embeddings().bias = torch.nn.Parameter(torch.eye(len(tokenizer))[3])
    assert tokenizer.decode([3]) == "b"
    assert complete(model, tokenizer, ["a:"], max_new_tokens=2) == [Completion(" b b", True)]


def test_an_interrupted_call_goes_on_after_its_finished_batches(model, tokenizer, tmp_path, monkeypatch):
    expected = complete(model, tokenizer, PROMPTS, max_new_tokens=8)
    generate, calls = type(model).generate, []

    def interrupted(self, **inputs):
        calls.append(len(inputs["input_ids"]))
        if len(calls) == 3:
            raise KeyboardInterrupt
        return generate(self, **inputs)

    monkeypatch.setattr(type(model), "generate", interrupted)
    with pytest.raises(KeyboardInterrupt):
        complete(model, tokenizer, PROMPTS, max_new_tokens=8, batch_size=8, keep=tmp_path)
    part = tmp_path / "rank0.jsonl"
    assert len(part.read_text().splitlines()) == 16
    part.write_text(part.read_text() + '[5, "ha')  # as if the process was killed in the middle of a line
    completions = complete(model, tokenizer, PROMPTS, max_new_tokens=8, batch_size=8, keep=tmp_path)
    assert completions == expected and sum(calls[3:]) == 33 - 16
    assert complete(model, tokenizer, PROMPTS, max_new_tokens=8, batch_size=8, keep=tmp_path) == expected
    assert sum(calls[3:]) == 33 - 16, "finished batches were computed again"
    assert all(json.loads(line) for line in part.read_text().splitlines())


def test_what_was_kept_for_other_prompts_is_not_taken(model, tokenizer, tmp_path):
    complete(model, tokenizer, PROMPTS, max_new_tokens=8, keep=tmp_path)
    for prompts, limit in ((PROMPTS[::-1], 8), (PROMPTS, 3)):
        expected = complete(model, tokenizer, prompts, max_new_tokens=limit)
        assert complete(model, tokenizer, prompts, max_new_tokens=limit, keep=tmp_path) == expected


def test_prompts_without_tokens_are_refused(model, tokenizer):
    with pytest.raises(ValueError, match="got '' \\(number 1 of 2\\), which has no token"):
        complete(model, tokenizer, ["a", ""], max_new_tokens=2)
    assert complete(model, tokenizer, [], max_new_tokens=2) == []


def test_tokenizers_without_an_end_are_refused(model):
    endless = make_character_tokenizer(eos_token=None)
    with pytest.raises(ValueError, match="no end-of-text token"):
        complete(model, endless, ["a"], max_new_tokens=2)


MADE = [Completion(" Nf3", False), Completion("", False), Completion(" e", True)]


def test_completions_are_kept_by_row_id(tmp_path):
    labels = WeakCompletions(["a", "b", "c"], MADE, {"model": "weak"})
    labels.save(tmp_path)
    again = WeakCompletions.load(tmp_path)
    assert again.of(["c", "a"]) == [MADE[2], MADE[0]] and again.provenance == {"model": "weak"}
    assert again.fingerprint == labels.fingerprint
    others = [Completion(" Nf3", False), Completion("", False), Completion(" e", False)]
    assert WeakCompletions(["a", "b", "c"], others).fingerprint != labels.fingerprint
    rows = Dataset.from_dict({"id": ["c", "b"], "prompt": ["x", "y"], "ground_truth": [" e4", " d4"]})
    joined = again.join(rows)
    assert joined.column_names == ["id", "prompt", "completion"] and joined["completion"][:] == [" e", ""]


@pytest.mark.parametrize(
    ("use", "error", "message"),
    [
        (lambda labels: labels.join(Dataset.from_dict({"id": ["a"], "completion": ["x"]})), ValueError,
         "got rows with the column completion, expected rows without labels"),
        (lambda labels: labels.of(["d"]), KeyError, "without a weak label"),
        (lambda labels: WeakCompletions(["a"], MADE), ValueError, "WeakCompletions: got 1 ids for 3 labels"),
    ],
    ids=["second completion", "unknown row", "few ids"],
)  # fmt: skip
def test_completions_of_other_rows_are_refused(use, error, message):
    with pytest.raises(error, match=message):
        use(WeakCompletions(["a", "b", "c"], MADE))
