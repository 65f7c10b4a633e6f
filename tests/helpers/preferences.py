"""Preference pairs in the formats of TRL."""

from datasets import Dataset

TEMPLATE = (
    "{% for message in messages %}<bos> {{ message.role }} {{ message.content }} {% endfor %}"
    "{% if add_generation_prompt %}<bos> assistant {% endif %}"
)


def dialogue(*turns: str) -> str:
    return "".join(f"\n\n{'Assistant' if n % 2 else 'Human'}: {turn}" for n, turn in enumerate(turns))


def messages(*turns: str) -> list[dict]:
    return [{"role": "assistant" if n % 2 else "user", "content": turn} for n, turn in enumerate(turns)]


def implicit_text(prompt: str, chosen: str, rejected: str) -> dict:
    return {"chosen": dialogue(prompt, chosen), "rejected": dialogue(prompt, rejected)}


def explicit_text(prompt: str, chosen: str, rejected: str) -> dict:
    return {"prompt": prompt, "chosen": f" {chosen}", "rejected": f" {rejected}"}


def explicit_messages(prompt: str, chosen: str, rejected: str) -> dict:
    return {
        "prompt": messages(prompt),
        "chosen": messages(prompt, chosen)[1:],
        "rejected": messages(prompt, rejected)[1:],
    }


def pairs_of(make, n: int = 60, begin: int = 0) -> Dataset:
    """Returns different pairs with words of the tests' tokenizer."""
    return Dataset.from_list(
        [make(f"w{n % 50} w{n // 50} w1", f"w2 w{n % 47}", f"w3 w{n % 43} w4") for n in range(begin, begin + n)]
    )
