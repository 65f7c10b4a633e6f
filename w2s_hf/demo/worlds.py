"""The world of the embedded demo: made-up facts that a small model can learn from text, and questions about them.

Every entity of the world belongs to one kind, and half of the kinds are alive. No text states which kinds are alive.
The corpus has facts about entities, in words that hint at the kind. A question shows four mostly uninformative facts
about two entities and asks whether one of them is alive. A model pretrained on the corpus can infer the answer. A
model trained on labelled questions alone only knows the entities in these questions. Each seed generates another
world.
"""

import zlib
from dataclasses import dataclass, fields

import numpy as np
from datasets import Dataset, Features, Value
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

__all__ = ["DEMO_WORLDS", "PAIR_SITUATIONS", "DemoWorld", "WorldConfig"]

# A pair of responses is in one of these situations. They name the features that show the better response.
PAIR_SITUATIONS = ("style only", "entity only", "both agree", "in conflict")

_SPECIAL_TOKENS = ("<pad>", "<bos>", "<unk>")
_RELATIONS = ("is", "has", "can")
# `question`, `:`, `alive`, `?`, `yes` and `no` never occur in the corpus.
_COMMON_WORDS = (".", "question", ":", "alive", "?", *_RELATIONS, "yes", "no")
_CONSONANTS, _VOWELS = "bdfgklmnprstvz", "aeiou"
# Documents and rows are drawn in blocks of this size, so that a larger sample begins with a smaller sample.
_BLOCK_SIZE = 1024


@dataclass(frozen=True)
class WorldConfig:
    """
    The configuration of a world: its size and difficulty. Ratios are probabilities in [0, 1].

    Args:
        n_entities (`int`, *optional*, defaults to 400): Number of entities, each with a one-word name.
        n_kinds (`int`, *optional*, defaults to 12): Number of kinds, an even number. Kinds with an odd index are
            alive. More kinds make the world harder.
        n_kind_words (`int`, *optional*, defaults to 5): Number of words for each kind and relation.
        n_superclass_words (`int`, *optional*, defaults to 4): Number of words for each relation and for each of the
            two superclasses, alive and not alive.
        n_generic_words (`int`, *optional*, defaults to 10): Number of words for each relation that fit all entities.
        facts_per_document (`int`, *optional*, defaults to 6): Number of facts in a document of the corpus. Each fact
            is about one of the document's two entities.
        facts_per_item (`int`, *optional*, defaults to 4): Number of facts in a question, an even number. Each of
            two entities has half of the facts.
        corpus_generic_ratio (`float`, *optional*, defaults to 0.3): Share of facts of the corpus with a generic word.
        item_generic_ratio (`float`, *optional*, defaults to 0.75): Share of facts of questions with a generic word.
        superclass_ratio (`float`, *optional*, defaults to 0.15): Share of facts with a superclass word, among facts
            without a generic word.
        noise_ratio (`float`, *optional*, defaults to 0.1): Share of facts whose word is drawn for a random kind.
        zipf_exponent (`float`, *optional*, defaults to 0.8):
            Exponent of the entity frequencies in the corpus. In questions, all entities are equally frequent.
        item_hint_ratio (`float`, *optional*, defaults to 0.0): Share of questions with a hint: one fact about the
            entity in question has a superclass word, which shows the answer without pretraining. One hint in twenty is
            wrong.
        questions_held_out (`bool`, *optional*, defaults to `False`): Whether test questions are about the held-out
            entities, and all other questions about the remaining entities. By default all questions are about all
            entities.
        n_held_out (`int`, *optional*, defaults to 100): Number of held-out entities, which occur only in test rows:
            in pairs of responses and, with `questions_held_out`, in questions.
        pair_differ_ratio (`float`, *optional*, defaults to 0.55): Share of pairs in which only one response is about
            something alive. A larger share lowers the accuracy of judging by style alone.
        pair_generic_ratio (`float`, *optional*, defaults to 0.8): Share of responses with a generic word.
        pair_flip_ratio (`float`, *optional*, defaults to 0.05): Share of pairs with the wrong preference.

    Raises:
        ValueError: A count is not positive or not even, or a ratio is not in [0, 1].
    """

    n_entities: int = 400
    n_kinds: int = 12
    n_kind_words: int = 5
    n_superclass_words: int = 4
    n_generic_words: int = 10
    facts_per_document: int = 6
    facts_per_item: int = 4
    corpus_generic_ratio: float = 0.3
    item_generic_ratio: float = 0.75
    superclass_ratio: float = 0.15
    noise_ratio: float = 0.1
    zipf_exponent: float = 0.8
    item_hint_ratio: float = 0.0
    questions_held_out: bool = False
    n_held_out: int = 100
    pair_differ_ratio: float = 0.55
    pair_generic_ratio: float = 0.8
    pair_flip_ratio: float = 0.05

    def __post_init__(self):
        for field in fields(self):
            value = getattr(self, field.name)
            if field.type is int and value < 1:
                raise ValueError(f"{field.name}: got {value}, expected at least 1. Set a larger number.")
            if field.name.endswith("_ratio") and not 0 <= value <= 1:
                raise ValueError(
                    f"{field.name}: got {value}, expected a probability in [0, 1]. Set a value in this range."
                )
        for name in ("n_kinds", "facts_per_item"):
            if getattr(self, name) % 2:
                raise ValueError(
                    f"{name}: got {getattr(self, name)}, expected an even number. Set {getattr(self, name) + 1}."
                )
        if self.n_entities < max(2, self.n_kinds):
            raise ValueError(
                f"n_entities: got {self.n_entities}, expected at least {max(2, self.n_kinds)}, one per kind. Set a "
                "larger number, or fewer kinds."
            )


# The keys are the values of --demo_world. In `ladder`, only wide models distinguish the kinds, and all knowledge about
# a test entity comes from pretraining. The configuration of `ladder` was chosen on seeds 0 and 3.
DEMO_WORLDS: dict[str, WorldConfig] = {
    "plain": WorldConfig(),
    "ladder": WorldConfig(n_kinds=36, superclass_ratio=0.05, item_hint_ratio=0.5, questions_held_out=True),
}
_HINT_NOISE_RATIO = 0.05


class DemoWorld:
    """
    The world of a seed, with its corpus, its questions and its tokenizer.

    All random numbers come from named streams. Equal seed, stream and arguments give equal rows in any process.
    Different streams are independent, so that another stream does not change existing rows.

    Args:
        config ([`WorldConfig`], *optional*): Defaults to the configuration of the published results.
        seed (`int`, *optional*, defaults to `0`): The seed of the world, at least 0.

    Attributes:
        entities (`list[str]`): The names of the entities, sorted by frequency in the corpus, highest first.
        kinds (`np.ndarray` of shape `(n_entities,)`, int64): The kind of each entity.
        is_alive (`np.ndarray` of shape `(n_entities,)`, bool): Whether each entity is alive.
        vocabulary (`list[str]`): The word of every token id.
    """

    def __init__(self, config: WorldConfig | None = None, seed: int = 0):
        self.config = config = WorldConfig() if config is None else config
        self.seed = seed
        rng = self._generator("world")
        self.kinds = rng.permutation(np.arange(config.n_entities) % config.n_kinds)
        self.is_alive = self.kinds % 2 == 1

        n_relations = len(_RELATIONS)
        shapes = {
            "kind": (n_relations, config.n_kinds, config.n_kind_words),
            "superclass": (n_relations, 2, config.n_superclass_words),
            "generic": (n_relations, config.n_generic_words),
        }
        names = _made_up_words(rng, config.n_entities + sum(int(np.prod(shape)) for shape in shapes.values()))
        self.entities = names[: config.n_entities]
        words = [*_COMMON_WORDS, *names]
        # Ids are in random order, so that neighbouring ids are unrelated.
        ids = len(_SPECIAL_TOKENS) + rng.permutation(len(words))
        self._id_of_word = dict(zip(words, ids.tolist(), strict=True))
        self._id_of_word |= {token: index for index, token in enumerate(_SPECIAL_TOKENS)}
        self.vocabulary = sorted(self._id_of_word, key=self._id_of_word.__getitem__)

        self._relation_ids = self._ids(_RELATIONS)
        self._entity_ids, *tables = np.split(
            ids[len(_COMMON_WORDS) :],
            np.cumsum([config.n_entities, *(int(np.prod(shape)) for shape in shapes.values())])[:-1],
        )
        tables = [table.reshape(shape) for table, shape in zip(tables, shapes.values(), strict=True)]
        self._kind_word_ids, self._superclass_word_ids, self._generic_word_ids = tables

    def _generator(self, stream: str) -> np.random.Generator:
        return np.random.default_rng(np.random.SeedSequence([self.seed, zlib.crc32(stream.encode())]))

    def _ids(self, words: tuple[str, ...]) -> np.ndarray:
        return np.array([self._id_of_word[word] for word in words])

    def tokenizer(self) -> PreTrainedTokenizerFast:
        """
        Returns a tokenizer of whole words that adds `<bos>` in front and ignores case. Punctuation is split off, so
        that `Question:` becomes two tokens.
        """
        tokenizer = Tokenizer(models.WordLevel(dict(self._id_of_word), unk_token="<unk>"))
        tokenizer.normalizer = normalizers.Lowercase()
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Punctuation()]
        )
        tokenizer.post_processor = processors.TemplateProcessing(
            single="<bos> $A", pair="<bos> $A $B", special_tokens=[("<bos>", self._id_of_word["<bos>"])]
        )
        return PreTrainedTokenizerFast(
            tokenizer_object=tokenizer,
            pad_token="<pad>",
            bos_token="<bos>",
            unk_token="<unk>",
            model_max_length=128,
            padding_side="right",
            clean_up_tokenization_spaces=False,
            model_input_names=["input_ids", "attention_mask"],
        )

    @property
    def answer_words(self) -> tuple[str, str]:
        """The words that follow `ENTITY is` in the corpus, for entities that are not alive and for living entities."""
        return tuple(self.vocabulary[word] for word in self._superclass_word_ids[_RELATIONS.index("is"), :, 0])

    def corpus(self, n_documents: int, stream: str = "corpus") -> np.ndarray:
        """
        Generates the pretraining corpus. Each document is `<bos>` and facts about two entities, drawn by frequency.

        Args:
            n_documents (`int`): Number of documents. A larger corpus begins with the documents of a smaller corpus.
            stream (`str`, *optional*, defaults to `"corpus"`): Name of the random stream.

        Returns:
            `np.ndarray` of shape `(n_documents, 1 + 4 * facts_per_document)`, int64: The token ids.
        """
        config = self.config
        frequency = np.arange(1, config.n_entities + 1) ** -config.zipf_exponent
        frequency /= frequency.sum()
        rng = self._generator(stream)
        blocks = [np.empty((0, 1 + 4 * config.facts_per_document), dtype=np.int64)]
        for _ in range(0, n_documents, _BLOCK_SIZE):
            pair = self._two_entities(rng, frequency, n=config.n_entities)
            speaker = rng.integers(2, size=(_BLOCK_SIZE, config.facts_per_document))
            facts = self._facts(rng, np.take_along_axis(pair, speaker, axis=1), config.corpus_generic_ratio)
            begin = np.full((_BLOCK_SIZE, 1), self._id_of_word["<bos>"])
            blocks.append(np.concatenate([begin, facts.reshape(_BLOCK_SIZE, -1)], axis=1))
        return np.concatenate(blocks)[:n_documents]

    def yes_no_rows(self, n: int, stream: str, *, held_out: bool = False) -> Dataset:
        """
        Generates distinct yes/no questions in the schema of google/boolq.

        Args:
            n (`int`): Number of rows. A larger sample begins with the rows of a smaller sample.
            stream (`str`): Name of the random stream, such as `"train"` or `"test"`.
            held_out (`bool`, *optional*, defaults to `False`): Whether the questions are about the held-out entities.
                Only used if `questions_held_out` of the world is set.

        Returns:
            [`~datasets.Dataset`] with `question` (`alive ? ENTITY is`), `answer` (bool) and `passage`. A question ends
            with the entity and `is`, the beginning of a fact in the corpus.

        Raises:
            ValueError: The world is too small for `n` distinct rows.
        """
        config = self.config
        words = np.array(self.vocabulary, dtype=object)
        answers: dict[tuple[str, str], bool] = {}
        rng = self._generator(stream)
        pool = self._pool(held_out) if config.questions_held_out else np.arange(config.n_entities)
        while len(answers) < n:
            n_before = len(answers)
            pair = pool[self._two_entities(rng, n=len(pool))]
            about = np.repeat(pair, config.facts_per_item // 2, axis=1)
            about = rng.permuted(about, axis=1)
            facts = self._facts(rng, about, config.item_generic_ratio)
            targets = pair[np.arange(_BLOCK_SIZE), rng.integers(2, size=_BLOCK_SIZE)]
            self._add_hints(rng, facts, about, targets)
            for fact_words, entity in zip(words[facts.reshape(_BLOCK_SIZE, -1)], targets, strict=True):
                key = " ".join(fact_words), f"alive ? {self.entities[entity]} is"
                answers.setdefault(key, bool(self.is_alive[entity]))
            if len(answers) == n_before:
                raise ValueError(f"n: got {n}, expected at most {n_before} distinct rows. Use a larger world.")
        rows = list(answers.items())[:n]
        columns = {
            "question": [question for (_, question), _ in rows],
            "answer": [answer for _, answer in rows],
            "passage": [passage for (passage, _), _ in rows],
        }
        features = {"question": Value("string"), "answer": Value("bool"), "passage": Value("string")}
        return Dataset.from_dict(columns, features=Features(features))

    def choice_rows(self, n: int, stream: str, *, n_choices: int = 4, held_out: bool = False) -> list[dict]:
        """
        Generates distinct questions with several answers. Each answer is about a different entity, and one of these
        entities is alive.

        An answer contains the facts about its entity. The passage is shared by right and wrong answers, so that each
        of its words occurs with both labels. With all facts in the passage, a small model without pretraining learns
        nothing.

        Args:
            n (`int`): Number of rows. A larger sample begins with the rows of a smaller sample.
            stream (`str`): Name of the random stream.
            n_choices (`int`, *optional*, defaults to 4): Number of answers per question.
            held_out (`bool`, *optional*, defaults to `False`): As in [`yes_no_rows`].

        Returns:
            `list[dict]` of length `n` with

            - `passage` (`str`): A fact about any entity.
            - `choices` (`list[str]`): The answers in random order. Each answer has facts about an entity, and ends
              with `ENTITY is`.
            - `correct` (`int`): The position of the entity that is alive.

        Raises:
            ValueError: The world is too small for `n` distinct rows.
        """
        config = self.config
        pool = self._pool(held_out) if config.questions_held_out else np.arange(config.n_entities)
        alive, dead = pool[self.is_alive[pool]], pool[~self.is_alive[pool]]
        words = np.array(self.vocabulary, dtype=object)
        rng = self._generator(stream)
        rows: dict[tuple, dict] = {}
        while len(rows) < n:
            n_before = len(rows)
            correct = rng.integers(n_choices, size=_BLOCK_SIZE)
            entities = np.stack([rng.permutation(dead)[:n_choices] for _ in range(_BLOCK_SIZE)])
            entities[np.arange(_BLOCK_SIZE), correct] = rng.choice(alive, size=_BLOCK_SIZE)
            about = np.repeat(entities[..., None], config.facts_per_item // 2, axis=-1)
            fact_ids = self._facts(rng, about, config.item_generic_ratio)
            self._add_hints(rng, fact_ids, about, entities)
            facts = words[fact_ids]
            other = words[self._facts(rng, rng.choice(config.n_entities, size=_BLOCK_SIZE), config.item_generic_ratio)]
            for row in range(_BLOCK_SIZE):
                passage = " ".join(other[row])
                choices = [
                    " ".join([*fact.ravel(), self.entities[entity], "is"])
                    for fact, entity in zip(facts[row], entities[row], strict=True)
                ]
                question = {"passage": passage, "choices": choices, "correct": int(correct[row])}
                rows.setdefault((passage, *choices), question)
            if len(rows) == n_before:
                raise ValueError(f"n: got {n}, expected at most {n_before} distinct rows. Use a larger world.")
        return list(rows.values())[:n]

    def preference_rows(self, n: int, stream: str, *, held_out: bool = False) -> list[dict]:
        """
        Generates pairs of responses. The better response is about something alive. If this holds for both
        responses or for neither response, the response in good style is better.

        A response consists of a style word and a fact about an entity: `yes ENTITY is WORD .`. The style word is `yes`
        (good style) or `no`. Neither word occurs in the corpus. A pair can therefore be judged by style, by knowledge
        of its entities, or by both features. If the features contradict each other, the response about
        something alive is better.

        Args:
            n (`int`): Number of pairs. A larger sample begins with the pairs of a smaller sample.
            stream (`str`): Name of the random stream.
            held_out (`bool`, *optional*, defaults to `False`): Whether the pairs are about the held-out entities,
                which no other pairs contain. Knowledge about these entities comes only from the corpus.

        Returns:
            `list[dict]` of length `n` with `chosen` and `rejected`.

        Raises:
            ValueError: No entity is left for either kind of pair.
        """
        config, n_blocks = self.config, -(-n // _BLOCK_SIZE)
        pool = self._pool(held_out)
        alive, dead = pool[self.is_alive[pool]], pool[~self.is_alive[pool]]
        words, rng, rows = np.array(self.vocabulary, dtype=object), self._generator(stream), []
        for _ in range(n_blocks):
            # The next lines draw for each side whether it is alive, and whether it is in good style.
            alive_differs = rng.random(_BLOCK_SIZE) < config.pair_differ_ratio
            style_differs = ~alive_differs | (rng.random(_BLOCK_SIZE) < 0.5)
            is_alive, is_good = (
                rng.integers(2, size=(_BLOCK_SIZE, 1)) ^ (np.array([0, 1]) & differs[:, None])
                for differs in (alive_differs, style_differs)
            )
            entities = np.where(
                is_alive, rng.choice(alive, size=is_alive.shape), rng.choice(dead, size=is_alive.shape)
            )
            facts = words[self._facts(rng, entities, config.pair_generic_ratio)]
            quality = is_alive + 0.5 * is_good
            first_is_better = (quality[:, 0] > quality[:, 1]) ^ (rng.random(_BLOCK_SIZE) < config.pair_flip_ratio)
            for row in range(_BLOCK_SIZE):
                sides = [" ".join(["yes" if is_good[row, side] else "no", *facts[row, side]]) for side in (0, 1)]
                better = 0 if first_is_better[row] else 1
                rows.append({"chosen": sides[better], "rejected": sides[1 - better]})
        return rows[:n]

    def pair_situation(self, first: str, second: str) -> str:
        """
        Returns the features that show which of two responses of [`preference_rows`] is better (`PAIR_SITUATIONS`).
        """
        good, alive = [], []
        for response in (first, second):
            style, entity = response.split()[:2]
            good.append(style == "yes")
            alive.append(bool(self.is_alive[self.entities.index(entity)]))
        if alive[0] == alive[1]:
            return "style only"
        if good[0] == good[1]:
            return "entity only"
        return "both agree" if good == alive else "in conflict"

    def _pool(self, held_out: bool) -> np.ndarray:
        """Returns the indices of the held-out entities, or of all other entities, in random order."""
        config = self.config
        if config.n_held_out >= config.n_entities:
            raise ValueError(
                f"n_held_out: got {config.n_held_out}, expected fewer than the {config.n_entities} entities. Set a "
                "smaller number."
            )
        order = self._generator("held out").permutation(config.n_entities)
        return order[: config.n_held_out] if held_out else order[config.n_held_out :]

    @staticmethod
    def _two_entities(rng: np.random.Generator, frequency: np.ndarray | None = None, *, n: int) -> np.ndarray:
        """
        Draws `_BLOCK_SIZE` pairs of distinct integers below `n`, as an int64 array of shape `(_BLOCK_SIZE, 2)`. Their
        probabilities are `frequency`, of shape `(n,)`. The default is uniform.
        """
        first, second = rng.choice(n, size=(2, _BLOCK_SIZE), p=frequency)
        while (same := np.flatnonzero(first == second)).size:
            second[same] = rng.choice(n, size=same.size, p=frequency)
        return np.stack([first, second], axis=1)

    def _add_hints(self, rng: np.random.Generator, facts: np.ndarray, about: np.ndarray, targets: np.ndarray) -> None:
        """
        Adds hints to questions, in place. With probability `item_hint_ratio`, one fact about the entity in question
        gets a superclass word.

        Args:
            rng (`np.random.Generator`): The source of randomness.
            facts (`np.ndarray` of shape `(*targets.shape, n, 4)`, int64): The token ids of the facts.
            about (`np.ndarray` of shape `(*targets.shape, n)`, int64): The entity of each fact.
            targets (`np.ndarray` of any shape, int64): The entities in question.
        """
        config = self.config
        if config.item_hint_ratio == 0:
            return
        position = np.where(about == targets[..., None], rng.random(about.shape), -1).argmax(axis=-1)[..., None, None]
        fact = np.take_along_axis(facts, position, axis=-2)[..., 0, :]
        relation = (fact[..., 1, None] == self._relation_ids).argmax(axis=-1)
        superclass = self.is_alive[targets] ^ (rng.random(targets.shape) < _HINT_NOISE_RATIO)
        number = rng.integers(config.n_superclass_words, size=targets.shape)
        hint = self._superclass_word_ids[relation, superclass.astype(int), number]
        fact[..., 2] = np.where(rng.random(targets.shape) < config.item_hint_ratio, hint, fact[..., 2])
        np.put_along_axis(facts, position, fact[..., None, :], axis=-2)

    def _facts(self, rng: np.random.Generator, entities: np.ndarray, generic_ratio: float) -> np.ndarray:
        """
        Draws a fact about each of `entities` (int64, any shape). Returns the token ids of `ENTITY RELATION WORD .`,
        `(*entities.shape, 4)` int64.
        """
        config, shape = self.config, entities.shape
        relation = rng.integers(len(_RELATIONS), size=shape)
        is_noise = rng.random(shape) < config.noise_ratio
        kind = np.where(is_noise, rng.integers(config.n_kinds, size=shape), self.kinds[entities])
        word = np.where(
            rng.random(shape) < config.superclass_ratio,
            self._superclass_word_ids[relation, kind % 2, rng.integers(config.n_superclass_words, size=shape)],
            self._kind_word_ids[relation, kind, rng.integers(config.n_kind_words, size=shape)],
        )
        word = np.where(
            rng.random(shape) < generic_ratio,
            self._generic_word_ids[relation, rng.integers(config.n_generic_words, size=shape)],
            word,
        )
        stop = np.full(shape, self._id_of_word["."])
        return np.stack([self._entity_ids[entities], self._relation_ids[relation], word, stop], axis=-1)


def _made_up_words(rng: np.random.Generator, n: int) -> list[str]:
    """Generates `n` distinct pronounceable words of three syllables."""
    syllables = np.array([consonant + vowel for consonant in _CONSONANTS for vowel in _VOWELS])
    if n > len(syllables) ** 3:
        raise ValueError(f"Got {n} words, expected at most {len(syllables) ** 3}. Configure a smaller world.")
    codes = rng.choice(len(syllables) ** 3, size=n, replace=False)
    parts = np.unravel_index(codes, (len(syllables),) * 3)
    return ["".join(word) for word in syllables[np.stack(parts, axis=1)]]
