"""Tests of pairs: the preference formats of TRL, random order of the sides, and counts of dropped pairs."""

import dataclasses
import json
from collections import Counter

import numpy as np
import pytest
from datasets import Dataset, DatasetDict
from helpers.models import make_model, make_tokenizer
from helpers.preferences import TEMPLATE, dialogue, explicit_messages, explicit_text, implicit_text, messages, pairs_of
from helpers.task_rows import real
from transformers import AutoTokenizer
from trl import RewardConfig, RewardTrainer

from w2s_hf.demo.rows import demo_pairs
from w2s_hf.demo.worlds import PAIR_SITUATIONS, DemoWorld, WorldConfig
from w2s_hf.tasks import PAIR_COLUMNS, PREFERENCE_TASKS, PreferenceTask, load_pairs, tokenize_pairs

HH = PREFERENCE_TASKS["anthropic_hh"]


def implicit_messages(prompt: str, chosen: str, rejected: str) -> dict:
    return {"chosen": messages(prompt, chosen), "rejected": messages(prompt, rejected)}


FORMATS = [implicit_text, explicit_text, implicit_messages, explicit_messages]


def splits_of(train: Dataset, test: Dataset | None = None, task: PreferenceTask = HH, **kwargs):
    raw = DatasetDict(train=train, test=pairs_of(explicit_text, 20, begin=100) if test is None else test)
    return load_pairs(task, raw=raw, **kwargs)


def chat_tokenizer():
    tokenizer = make_tokenizer()
    tokenizer.chat_template = TEMPLATE
    return tokenizer


@pytest.mark.parametrize("make", FORMATS)
def test_every_format_becomes_the_same_kind_of_pair(make):
    example = HH.example(make("what is w1", "w2 yes", "w3 no"))
    words = [part if isinstance(part, str) else part[-1]["content"] for part in (example["first"], example["second"])]
    chosen, rejected = words if example["ground_truth"] else reversed(words)
    assert (chosen.strip(), rejected.strip()) == ("w2 yes", "w3 no")
    assert "what is w1" in json.dumps(example["prompt"])
    turned = HH.example(make("what is w1", "w3 no", "w2 yes"))
    assert turned["ground_truth"] == 1 - example["ground_truth"]
    assert {name: turned[name] for name in PAIR_COLUMNS} == {name: example[name] for name in PAIR_COLUMNS}


def test_where_a_prompt_ends():
    row = {"chosen": dialogue("a", "b", "c", "I see"), "rejected": dialogue("a", "b", "c", "I do")}
    example = HH.example(row)
    assert example["prompt"] == dialogue("a", "b", "c") + "\n\nAssistant:"
    assert {example["first"], example["second"]} == {" I see", " I do"}
    early = HH.example({"chosen": dialogue("a", "b"), "rejected": dialogue("a", "c", "d", "e")})
    assert early["prompt"].endswith("\n\nHuman: a\n\nAssistant:") and dialogue("a", "c", "d", "e").endswith(" e")
    assert HH.example({"chosen": "I see", "rejected": "I do"})["prompt"] == ""
    other = HH.example({"chosen": "# Human: a\n# Bot: yes", "rejected": "# Human: a\n# Bot: yesterday"})
    assert other["prompt"] == "# Human: a\n" and {other["first"], other["second"]} == {
        "# Bot: yes",
        "# Bot: yesterday",
    }
    several = HH.example({"chosen": messages("a", "b", "c", "d"), "rejected": messages("a", "b", "c", "e")})
    assert several["prompt"] == messages("a", "b", "c")


@pytest.mark.parametrize("make", FORMATS)
def test_tokens_are_those_of_trl(make, tmp_path):
    tokenizer = chat_tokenizer()
    rows = pairs_of(make, 10)
    config = make_model("llama").config
    config.num_labels = 1
    theirs = RewardTrainer(
        model=type(make_model("llama"))(config),
        args=RewardConfig(str(tmp_path), use_cpu=True, bf16=False, report_to="none"),
        train_dataset=rows,
        processing_class=tokenizer,
    ).train_dataset
    examples = [HH.example(row) for row in rows]
    ours = tokenize_pairs(Dataset.from_list(examples), tokenizer, None)
    for example, row, expected in zip(examples, ours, theirs, strict=True):
        sides = [row["chosen_ids"], row["rejected_ids"]]
        assert sides[:: 1 if example["ground_truth"] else -1] == [expected["chosen_ids"], expected["rejected_ids"]]


@pytest.mark.parametrize("make", [explicit_text, explicit_messages])
def test_too_long_prompts_lose_their_beginning_on_both_sides_alike(make):
    tokenizer = chat_tokenizer()
    prompt = " ".join(f"w{n}" for n in range(40))
    example = HH.example(make(prompt, "w50 w51 w52", "w53"))
    whole, cut = (tokenize_pairs(Dataset.from_list([example]), tokenizer, n)[0] for n in (None, 20))
    sides = {name: (whole[name], cut[name]) for name in ("chosen_ids", "rejected_ids")}
    assert max(len(short) for _, short in sides.values()) == 20
    n_lost = {len(long) - len(short) for long, short in sides.values()}
    assert len(n_lost) == 1, "the longer side determines how many prompt tokens both sides lose"
    for long, short in sides.values():
        assert long[-len(short) :] == short


def test_a_long_dialogue_loses_whole_turns_and_keeps_what_the_system_says():
    tokenizer = chat_tokenizer()
    turns = messages("w1 " * 8, "w2 " * 8, "w3 w4", "w5 w6", "w7 w8")
    row = {"chosen": [{"role": "system", "content": "w9"}, *turns, {"role": "assistant", "content": "w10"}]}
    row["rejected"] = [*row["chosen"][:-1], {"role": "assistant", "content": "w11"}]
    example = HH.example(row)
    (cut,) = tokenize_pairs(Dataset.from_list([example]), tokenizer, 24)
    first, second = ("w10", "w11") if example["ground_truth"] else ("w11", "w10")
    context = "<bos> system w9 <bos> user w3 w4 <bos> assistant w5 w6 <bos> user w7 w8 <bos> assistant "
    expected = [tokenizer(context + reply, add_special_tokens=False)["input_ids"] for reply in (first, second)]
    assert [cut["chosen_ids"], cut["rejected_ids"]] == expected


def test_special_tokens_are_there_once():
    """Texts get the special tokens of the tokenizer, and messages those of their template."""
    tokenizer = DemoWorld(seed=0).tokenizer()
    tokenizer.chat_template = "<bos> " + TEMPLATE.replace("<bos> ", "")
    for make in FORMATS:
        (row,) = tokenize_pairs(Dataset.from_list([HH.example(make("a", "b", "c"))]), tokenizer, None)
        for ids in (row["chosen_ids"], row["rejected_ids"]):
            assert ids.count(tokenizer.bos_token_id) == 1 and ids[0] == tokenizer.bos_token_id


def test_a_template_that_shows_an_answered_prompt_otherwise():
    tokenizer = chat_tokenizer()
    tokenizer.chat_template = "{{ messages | length }} " + TEMPLATE  # the response adds a message
    example = HH.example(explicit_messages("w1 w2", "w3", "w4"))
    whole = tokenize_pairs(Dataset.from_list([example]), tokenizer, None)[0]["chosen_ids"]
    assert tokenize_pairs(Dataset.from_list([example]), tokenizer, len(whole))[0]["chosen_ids"] == whole
    with pytest.raises(ValueError, match="got a response of"):
        tokenize_pairs(Dataset.from_list([example]), tokenizer, len(whole) - 1)


def test_a_response_that_does_not_fit_is_counted_before_the_split():
    rows = pairs_of(explicit_text).to_list()
    for number in (3, 17):
        rows[number]["rejected"] = " w5" * 30
    splits = splits_of(Dataset.from_list(rows), tokenizers=[make_tokenizer()], max_length=16)
    assert splits.n_dropped == {"a response of more than 16 tokens": 2}
    assert sum(map(len, splits.parts.values())) == 78
    for part in splits.parts.values():
        tokenize_pairs(part, make_tokenizer(), 16)
    other = splits_of(Dataset.from_list(rows))
    with pytest.raises(ValueError, match="got a response of 31 tokens, expected at most max_length=16. Raise"):
        for part in other.parts.values():
            tokenize_pairs(part, make_tokenizer(), 16)


def test_messages_need_a_chat_template():
    with pytest.raises(ValueError, match="Got responses that are messages.*expected a tokenizer with a chat template"):
        tokenize_pairs(Dataset.from_list([HH.example(explicit_messages("a", "b", "c"))]), make_tokenizer(), None)


def test_what_cannot_be_compared_is_counted(caplog):
    good = pairs_of(implicit_text).to_list()
    bad = [
        implicit_text("w1", "w2", "w2"),
        implicit_text("w1", " W2 ", "w2"),
        implicit_text("w1", "", "w2"),
        {"chosen": "w1", "rejected": None},
        {"chosen": dialogue("w1", "w2"), "rejected": "   "},
    ]
    splits = splits_of(Dataset.from_list([*bad, *good]), pairs_of(implicit_text, 20, begin=100))
    assert splits.n_dropped == {"identical responses": 2, "an empty response": 3}
    assert sum(map(len, splits.parts.values())) == 80
    assert "dropped pairs: 2 with identical responses, 3 with an empty response" in caplog.text


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"chosen": "a", "reject": "b"}], "the split 'train' has no column 'rejected'. Got chosen, reject"),
        ([{"chosen": "a", "rejected": messages("b")}], "row 0 of the split 'train' has text and messages, expected"),
        (
            [{"chosen": 1, "rejected": 2}],
            "row 0 of the split 'train' has int in 'chosen', expected text, or messages",
        ),
        (
            [{"chosen": [{"role": "user", "content": ["a"]}], "rejected": [{"role": "user", "content": ["b"]}]}],
            "row 0 of the split 'train' has a message in 'chosen' with the content",
        ),
        (
            [{**implicit_text("a", "b", "c"), "tools": "[]"}],
            "row 0 of the split 'train' has 'tools', which is not supported",
        ),
        ([{"chosen": ["a"], "rejected": ["b"]}], "has list in 'chosen', expected text, or messages with `role`"),
        ([implicit_text("a", "b", "b")], "got no usable pair in the split .* Dropped: 1 with identical responses"),
    ],
)
def test_rows_that_are_no_pairs_are_named(rows, message):
    with pytest.raises(ValueError, match=message):
        splits_of(Dataset.from_list(rows))


def test_too_few_pairs_say_how_many_there_are():
    with pytest.raises(
        ValueError,
        match="got --n_train 500, --n_weak 4, --n_validation 4, 508 training rows .* at most 60",
    ):
        splits_of(pairs_of(explicit_text), n_train=500, n_weak=4, n_validation=4)


def test_sides_are_random_and_the_same_for_shuffled_rows():
    rows, test = pairs_of(explicit_text, 400), pairs_of(explicit_text, 50, begin=1000)
    splits, again = splits_of(rows, test), splits_of(rows.shuffle(seed=1), test.shuffle(seed=2))
    truths = [truth for part in splits.parts.values() for truth in part["ground_truth"]]
    assert 0.4 < np.mean(truths) < 0.6
    assert splits.fingerprint == again.fingerprint != splits_of(rows, test, seed=1).fingerprint
    fewer = splits_of(rows, test, n_train=100, n_weak=50, n_validation=20, n_test=30)
    assert [len(part) for part in fewer.parts.values()] == [50, 10, 100, 10, 30]


def test_a_dialogue_is_on_one_side_and_contradictions_nowhere():
    begun = [(f"about w{n}", f"reply w{n}", f"go on w{n}") for n in range(40)]
    rows = [implicit_text(first, reply, "no") for first, reply, _ in begun]
    rows += [
        {"chosen": dialogue(first, reply, more, "w7"), "rejected": dialogue(first, reply, more, "w8")}
        for first, reply, more in begun
    ]
    rows += [implicit_text("again", "w1", "w2"), implicit_text("again", "w2", "w1")]  # one of the two rows is wrong
    rows += [rows[0], {"chosen": "\n\nHuman: b\n\nAssistant:c", "rejected": "\n\nHuman: b\n\nAssistant: c"}]
    rows += [implicit_text("ABOUT w1", "reply  w1", "no")]  # equal except for case and spacing
    splits = splits_of(Dataset.from_list(rows), task=dataclasses.replace(HH, test_split=None))
    parts_of = {}
    for name, part in splits.parts.items():
        for row in part:
            parts_of.setdefault(row["prompt"].split("\n\n")[1].lower(), []).append(name)
    assert len(parts_of) == 40 and all(len(names) == 2 and len(set(names)) == 1 for names in parts_of.values())
    apart = dataclasses.replace(HH, test_split=None, group_by_prompt=False)
    assert len(set(splits_of(Dataset.from_list(rows), task=apart).weak_half["group"])) > 1


def test_one_local_file_has_a_fifth_held_out_and_says_so(tmp_path, caplog):
    pairs_of(explicit_text, 100).to_json(tmp_path / "pairs.jsonl")
    splits = load_pairs(HH, dataset_path=str(tmp_path / "pairs.jsonl"))
    assert len(splits.test) == pytest.approx(20, abs=2) and sum(map(len, splits.parts.values())) == 100
    assert "pairs.jsonl' has one split, 'train'. A fifth of the rows is held out for testing" in caplog.text


def test_nothing_of_the_test_set_is_trained_on():
    train, test = pairs_of(implicit_text, 80), pairs_of(implicit_text, 30, begin=70)
    more = [{"chosen": dialogue("w20 w1 w1", "w2", "w3", "w4"), "rejected": dialogue("w20 w1 w1", "w2", "w3", "w5")}]
    splits = splits_of(train, Dataset.from_list([*test, *more]))
    assert len(splits.test) == 31
    # Ten of the training pairs are also test pairs, and one begins like a test dialogue of two turns.
    assert sum(map(len, splits.parts.values())) == 31 + 80 - 10
    more = [{"chosen": dialogue("w20 w0 w1", "w2", "w3", "w4"), "rejected": dialogue("w20 w0 w1", "w2", "w3", "w5")}]
    assert sum(map(len, splits_of(train, Dataset.from_list([*test, *more])).parts.values())) == 31 + 80 - 11


def test_demo_pairs_are_what_they_are_said_to_be():
    world = DemoWorld(seed=3)
    pairs = [
        tuple(text.rpartition("Assistant: ")[2] for text in (row["chosen"], row["rejected"]))
        for row in demo_pairs(world, 4000, "pairs")
    ]
    shares = {name: n / 4000 for name, n in Counter(world.pair_situation(*pair) for pair in pairs).items()}
    expected = dict(zip(PAIR_SITUATIONS, (0.45, 0.275, 0.1375, 0.1375), strict=True))
    assert shares == pytest.approx(expected, abs=0.03)

    def is_alive(response):
        return bool(world.is_alive[world.entities.index(response.split()[1])])

    style = np.mean([first.startswith("yes") for first, second in pairs if first[:2] != second[:2]])
    alive = np.mean([is_alive(first) for first, second in pairs if is_alive(first) != is_alive(second)])
    # By style alone, 0.5875 (0.45 + 0.1375) of the 0.725 pairs that differ in style are right. 5 % of the labels are
    # flipped.
    assert alive == pytest.approx(0.95, abs=0.02)
    assert style == pytest.approx(0.95 * 0.5875 / 0.725 + 0.05 * 0.1375 / 0.725, abs=0.02)
    entities = [
        {
            response.split()[1]
            for row in world.preference_rows(2000, "x", held_out=held_out)
            for response in row.values()
        }
        for held_out in (False, True)
    ]
    assert (len(entities[0]), len(entities[1])) == (300, 100) and not entities[0] & entities[1]
    assert world.preference_rows(10, "x") == world.preference_rows(2000, "x")[:10] != world.preference_rows(10, "y")


def test_a_world_without_entities_to_spare():
    with pytest.raises(ValueError, match="n_held_out: got 100, expected fewer than the 60 entities"):
        DemoWorld(WorldConfig(n_entities=60)).preference_rows(5, "x")


def test_situations_by_hand():
    world = DemoWorld(seed=0)
    alive = [name for name, is_alive in zip(world.entities, world.is_alive, strict=True) if is_alive]
    dead = [name for name in world.entities if name not in alive]
    for first, second, expected in [
        (f"yes {alive[0]}", f"no {alive[1]}", "style only"),
        (f"yes {dead[0]}", f"no {dead[1]}", "style only"),
        (f"no {alive[0]}", f"no {dead[0]}", "entity only"),
        (f"yes {alive[0]}", f"no {dead[0]}", "both agree"),
        (f"no {dead[0]}", f"yes {alive[0]}", "both agree"),
        (f"no {alive[0]}", f"yes {dead[0]}", "in conflict"),
    ]:
        assert world.pair_situation(f"{first} is w .", f"{second} is w .") == expected


@pytest.mark.slow
@pytest.mark.real_data
def test_real_pairs_fit_and_keep_their_replies():
    tokenizer = AutoTokenizer.from_pretrained(f"{real('tokenizers')}/gpt2")
    tokenizer.eos_token = "<|endoftext|>"
    splits = load_pairs(HH, dataset_path=real("hh_rlhf"), tokenizers=[tokenizer], max_length=256)
    assert set(splits.n_dropped) == {
        "a response of more than 256 tokens", "an empty response", "identical responses"
    }  # fmt: skip
    sizes = {name: len(part) for name, part in splits.parts.items()}
    assert sizes["weak_half"] == pytest.approx(sizes["student_half"], rel=0.02) and sizes["test"] > 1000
    for part in splits.parts.values():
        assert 0.4 < np.mean(part["ground_truth"][:]) < 0.6
        part = part.select(range(min(len(part), 400)))
        tokens = tokenize_pairs(part, tokenizer, 256)
        for side, name in (("first", "chosen_ids"), ("second", "rejected_ids")):
            assert max(map(len, tokens[name][:])) <= 256
            texts = tokenizer.batch_decode(tokens[name][:])
            assert all(
                text.endswith(reply + "<|endoftext|>") for text, reply in zip(texts, part[side][:], strict=True)
            )
