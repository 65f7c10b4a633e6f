"""Tests of prompts: answer tokens, heads that are initialized with them, and students of prompted texts."""

import re
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from datasets import Dataset, DatasetDict, load_dataset
from helpers.models import (
    make_character_tokenizer,
    make_language_model,
    make_model,
    make_tokenizer,
    merging_tokenizer,
    real_model,
)
from helpers.predictions import check_predictions
from helpers.running import recipe_here
from helpers.task_rows import own_task, real
from helpers.training import arguments
from tokenizers.processors import TemplateProcessing
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig

from w2s_hf import Task, WeakLabels, load_task
from w2s_hf.analysis import PromptFormat, answer_probabilities, balanced_scores
from w2s_hf.config import HEAD_INITS, StudentConfig
from w2s_hf.experiments.cache import StageCache
from w2s_hf.experiments.config import ClassificationArguments
from w2s_hf.experiments.finetuner import Finetuner, prompt_of_head
from w2s_hf.experiments.output_directory import _prompt_form
from w2s_hf.experiments.prompts import Prompts, check_prompt_lengths
from w2s_hf.experiments.self_baselines import has_self_baselines, self_trained_summary
from w2s_hf.experiments.settings.classification import CLASSIFICATION
from w2s_hf.methods import find_methods
from w2s_hf.modeling import load_tokenizer
from w2s_hf.modeling.heads import initialise_head
from w2s_hf.modeling.spec import ModelSpec, load_base
from w2s_hf.results import SELF_TRAINED, ExperimentResult
from w2s_hf.tasks import TASKS
from w2s_hf.tasks.prompt import answer_tokens, head_tokens

FORM = PromptFormat(answers=("n", "y"), instruction="say {y} or n. ", prefix="Q: ", suffix="\nA:")


def untrained_predictions(task: Task, rows: Dataset, spec: ModelSpec, tmp_path) -> np.ndarray:
    """Returns the predictions of the student of an experiment before its first optimizer step."""
    finetuner = Finetuner(StageCache(tmp_path / "stages"), CLASSIFICATION, arguments(tmp_path, max_length=None))
    tokenizer = load_tokenizer(spec.path)
    model = finetuner.untrained(spec, tokenizer, 0, prompt_of_head(spec, task))
    labelled = CLASSIFICATION.with_ground_truth(rows)

    def tokenize(part: Dataset) -> Dataset:
        return finetuner.tokenize(spec, tokenizer, part)

    trainer = CLASSIFICATION.make_trainer(model, finetuner.args, tokenizer, labelled, labelled, tokenize)
    return CLASSIFICATION.predict(trainer, rows, tokenize, tmp_path)


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize(
    "options", [{"use_peft": False}, {"lora_r": 4}, {"lora_r": 4, "load_in_4bit": True}], ids=["all", "lora", "4 bit"]
)
def test_an_untrained_student_with_the_answers_as_its_head_predicts_what_its_base_answers(options, tied, tmp_path):
    tokenizer = make_character_tokenizer()
    make_language_model(tokenizer, tie_word_embeddings=tied).save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    task = own_task(prompt=FORM)
    texts = [{"message": "x" * (n % 5) + f" {n}", "is_spam": n % 2} for n in range(9)]
    rows, prompted = (
        Dataset.from_list([example for row in texts for example in form.examples(row)])
        for form in (task, task.prompted())
    )
    prompts = [FORM.prompt(text) for text in rows["text"]]
    assert task.prompted().form == "say {y} or n. Q: Message: {message}" + FORM.suffix
    assert prompted["text"][:] == prompts and prompts[0].startswith("say {y} or n. Q: Message: ")
    assert [FORM.text_of(prompt) for prompt in prompts] == rows["text"][:]
    config = StudentConfig(dtype="float32", head_init="answers", **options)
    spec = ModelSpec.find(str(tmp_path / "model"), "--student_model", config)
    answers = answer_probabilities(load_base(spec, "CAUSAL_LM"), tokenizer, prompts, FORM)
    np.testing.assert_allclose(untrained_predictions(task, prompted, spec, tmp_path), answers, atol=2e-6)
    assert answers[:, 1].std() > 0.01
    assert np.abs(untrained_predictions(task, rows, spec, tmp_path) - answers).max() > 0.01, "the prompt has no effect"


def test_a_prompted_text_loses_its_context_alone():
    task = own_task(prompt=FORM).prompted()
    (row,) = task.examples({"message": "a {b} c", "is_spam": "spam"})
    assert row["text"] == "say {y} or n. Q: Message: a {b} c\nA:"
    assert row["text"][row["context_start"] : row["context_end"]] == "a {b} c"


@pytest.mark.parametrize(
    ("answers", "message"),
    [
        (("é", "y"), "has no token for the answer 'é'"),
        ((" n", " y"), r"answers ' n' and ' y', which both begin with the token \[' '\], expected different first"),
    ],
)
def test_answers_that_make_no_head_are_refused(answers, message):
    tokenizer = make_character_tokenizer(unk_token="<pad>")
    with pytest.raises(ValueError, match=message):
        head_tokens(tokenizer, PromptFormat(answers=answers))


@pytest.mark.parametrize("answers", [(" n", "y"), ("y", " n")])
def test_neither_answer_may_be_joined_with_the_suffix(answers):
    with pytest.raises(ValueError, match="The tokenizer merges the suffix ':' and ' n'. Use another suffix"):
        answer_tokens(merging_tokenizer(), PromptFormat(answers=answers, suffix=":"))


@pytest.mark.parametrize("answers", [("no", "no"), "no", ("no",)])
def test_a_prompt_has_two_answers(answers):
    with pytest.raises(ValueError, match="expected two different texts"):
        PromptFormat(answers=answers)


@pytest.mark.parametrize(("name", "parts"), [("suffix", {"suffix": None}), (r"answers\[1\]", {"answers": ("0", 1)})])
def test_every_part_of_a_prompt_is_text(name, parts):
    with pytest.raises(ValueError, match=f"{name}: got (None|1), expected a text"):
        PromptFormat(**parts)


def test_a_task_takes_no_other_prompt_than_a_format():
    with pytest.raises(ValueError, match="prompt: got 'Is it spam', expected a w2s_hf.tasks.PromptFormat"):
        own_task(prompt="Is it spam")


@pytest.mark.parametrize("answers", [("n", "no"), ("no", "n")])
def test_no_answer_begins_with_the_other(answers):
    with pytest.raises(ValueError, match="of which one begins with the tokens of the other answer, expected"):
        answer_tokens(make_character_tokenizer(), PromptFormat(answers=answers))


def test_a_tokenizer_that_ends_texts_reads_no_answer_behind_a_prompt():
    tokenizer = make_character_tokenizer()
    end = ("<eos>", tokenizer.eos_token_id)
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single="$A <eos>", special_tokens=[end])
    with pytest.raises(ValueError, match=r"Got a tokenizer that appends \['<eos>'\] to a text"):
        answer_tokens(tokenizer, FORM)


def test_no_head_is_made_of_answers_behind_the_padding_token():
    tokenizer = make_character_tokenizer(pad_token=":")
    with pytest.raises(ValueError, match="ends with the padding token ':', but a classifier reads the last token"):
        head_tokens(tokenizer, FORM)
    assert answer_tokens(tokenizer, FORM) == ([], head_tokens(make_character_tokenizer(), FORM)), "it is supported"


def test_a_tokenizer_without_an_attention_mask_asks_as_one_that_has_it():
    with_mask, without = make_character_tokenizer(), make_character_tokenizer()
    without.model_input_names = ["input_ids"]
    model, prompts = make_language_model(with_mask).eval(), ["a", "b c d e"]
    probabilities, expected = (
        answer_probabilities(model, tokenizer, prompts, FORM) for tokenizer in (without, with_mask)
    )
    np.testing.assert_array_equal(probabilities, expected)


@pytest.mark.parametrize(
    ("text", "example", "answers"),
    [
        ("m" * 40, "m", ("n", "y")),
        ("m", "m" * 40, ("n", "y")),
        ("m", "m", ("n", "y" * 40)),
        ("m", "m", ("n" * 40, "y")),
    ],
    ids=["text", "example", "second answer", "first answer"],
)
def test_prompts_are_measured_before_the_labels_of_their_examples_are_known(text, example, answers):
    tokenizer = make_character_tokenizer()

    def check(limit: int) -> None:
        prompts = Prompts(PromptFormat(answers=answers, suffix=" ", separator=" "))
        config = LlamaConfig(max_position_embeddings=limit)
        check_prompt_lengths(tokenizer, config, prompts, [text], [example, example], 1, 0)

    check(100)
    with pytest.raises(ValueError, match="tokens, expected at most 40, .*Use fewer examples"):
        check(40)


def test_a_prompt_without_tokens_and_one_without_an_answer_are_refused():
    tokenizer = make_character_tokenizer()
    model = make_language_model(tokenizer).eval()
    with pytest.raises(ValueError, match="Got no tokens for prompt 1, expected at least one"):
        answer_probabilities(model, tokenizer, ["a", ""], FORM)
    with torch.no_grad():
        model.model.embed_tokens.weight[tokenizer.convert_tokens_to_ids("z")] = torch.nan
    with pytest.raises(ValueError, match="Got NaN for 1 of 2 prompts .first: prompt 1., expected probabilities"):
        answer_probabilities(model, tokenizer, ["a", "z"], FORM)


def test_nothing_is_scored_as_if_it_were_an_answer():
    fine, undefined = np.array([[0.4, 0.6], [0.7, 0.3]]), np.array([[np.nan, np.nan], [0.7, 0.3]])
    for values in ((undefined, fine), (fine, undefined)):
        with pytest.raises(ValueError, match="got NaN or infinity in row"):
            balanced_scores(*values, np.array([0, 1]))


def test_a_head_of_answers_needs_one_for_each_output_and_an_unembedding():
    with pytest.raises(ValueError, match="got the tokens None for 2 outputs"):
        initialise_head(make_model("llama"), "answers")
    with pytest.raises(ValueError, match="type 'bert', which has no unembedding"):
        initialise_head(make_model("bert"), "answers", answers=[5, 6])


@pytest.fixture
def models(tmp_path):
    """
    Directories of tiny models: a decoder with a character tokenizer, a decoder whose unembedding has another name, a
    decoder whose context fits rows but no prompts, and an encoder.
    """
    make_language_model(make_character_tokenizer()).save_pretrained(tmp_path / "sharded", max_shard_size="50KB")
    make_character_tokenizer(unk_token="<pad>").save_pretrained(tmp_path / "sharded")
    index = tmp_path / "sharded" / "model.safetensors.index.json"
    index.write_text(index.read_text().replace("lm_head.weight", "embed_out.weight"))
    make_language_model(make_character_tokenizer()).save_pretrained(tmp_path / "decoder")
    make_character_tokenizer(unk_token="<pad>").save_pretrained(tmp_path / "decoder")
    short = make_language_model(make_character_tokenizer())
    short.config.max_position_embeddings = 9
    short.save_pretrained(tmp_path / "short")
    make_character_tokenizer(unk_token="<pad>").save_pretrained(tmp_path / "short")
    make_model("bert").save_pretrained(tmp_path / "encoder")
    make_tokenizer().save_pretrained(tmp_path / "encoder")
    return tmp_path


TASK_FILE = """
from w2s_hf import Task
from w2s_hf.tasks import PromptFormat
TASK = Task("spam", "rows.json", "{text}", label="label", prompt=PromptFormat(answers=%s, prefix="Q: ", suffix=":"))
"""


ASKED = ("--head_init", "normal", "--analyses", "prompting")


def run(models, tmp_path, cache, *options, answers=("n", "y"), student="decoder", weak="decoder"):
    (tmp_path / "spam.py").write_text(TASK_FILE % (answers,))
    letters = "abcdefghij"
    for split, start in (("train", 0), ("test", 100)):
        texts = [f"{letters[n % 10]} {letters[n // 10 % 10]}{letters[n % 7]} {n}" for n in range(start, start + 90)]
        rows = Dataset.from_dict({"text": texts, "label": [n % 2 for n in range(90)]})
        rows.to_parquet(tmp_path / "rows" / f"{split}.parquet")
    command = ["--task", tmp_path / "spam.py", "--dataset_path", tmp_path / "rows", "--use_cpu", "true"]
    command += ["--weak_model", models / weak, "--student_model", models / student, "--dtype", "float32"]
    command += ["--n_train", "16", "--n_weak", "16", "--n_validation", "8", "--n_test", "60", "--max_steps", "1"]
    command += ["--methods", "naive", "--learning_rate", "0", "--head_init", "answers", "--report_to", "none"]
    return recipe_here(*command, *options, "--output_dir", tmp_path / "out", cache=cache, name="nlp.py")


def test_a_student_that_learns_nothing_has_the_scores_of_its_prompted_base(models, tmp_path, cache):
    options = ["--use_prompts", "true", "--analyses", "prompting", "--prompt_shots", "1"]
    process = run(models, tmp_path, cache, *options)
    assert process.returncode == 0, process.stderr[-3000:]
    assert "6 of 6: analysis prompting" in process.stderr  # every step was planned
    results = ExperimentResult.read(tmp_path / "out" / "results.json")
    (one,) = results.runs
    (student,) = one.students
    zero_shot = one.analyses["prompting"]["prompted"]["zero-shot"]
    assert student.accuracy == zero_shot["accuracy"] and student.scores["auroc"] == zero_shot["auroc"]
    # The baselines of the student's own answers do not need an option. Its training changed nothing, too.
    prompts = {baseline.name: baseline for baseline in one.baselines}
    assert prompts["zero-shot, balanced"].accuracy == zero_shot["accuracy_at_median"]
    assert one.self_trained.accuracy == zero_shot["accuracy"] and one.self_trained.pgr == student.pgr
    summary = results.self_trained
    assert (summary.method, summary.accuracy_mean, summary.n_seeds) == ("naive", student.accuracy, 1)
    assert (summary.difference, summary.difference_ci95, summary.n_better) == (0, [0, 0], 0)
    sentence = "As training labels, the weak labels do not differ measurably from the student's own zero-shot answers"
    assert sentence in process.stdout and sentence in (tmp_path / "out" / "report.md").read_text()
    roles = set(check_predictions(tmp_path / "out")["role"])
    few_shot = "1-shot with weak labels, balanced"
    assert {"zero-shot, balanced", few_shot, SELF_TRAINED} <= roles
    of_weak = one.analyses["prompting"]["prompted"]["1-shot, weak labels"]
    assert prompts[few_shot].accuracy == of_weak["accuracy_at_median"]
    # The labels are the zero-shot answers, balanced by the median of the training rows.
    (labels,) = (tmp_path / "out" / "_stages").glob("labels-self_labels-*/labels")
    labels = WeakLabels.load(labels)
    assert len(labels) == 16 + 4 and np.median(
        np.log(labels.probabilities[:16] / (1 - labels.probabilities[:16]))
    ) == (pytest.approx(0, abs=1e-5))
    assert run(models, tmp_path, cache, *options).stderr.count("Nothing was trained") == 1
    assert results.text_form == "Q: {text}:" and results.to_dict()["dataset"]["use_prompts"] is True


@pytest.mark.parametrize(
    ("more", "options", "words"),
    [
        ((), {"student": "encoder"}, "--head_init answers: got encoder of type 'bert'"),
        (
            (),
            {"answers": ("é", "y")},
            "--head_init answers: decoder, spam: The tokenizer has no token for the answer 'é'",
        ),
        ((), {"student": "sharded"}, "sharded: the checkpoint has no `lm_head.weight`. Use --head_init normal"),
        (
            ASKED,
            {"answers": ("é", "y")},
            "--analyses prompting: decoder, spam: The tokenizer has no token for the answer 'é'",
        ),
        (
            ("--use_prompts", "true", "--head_init", "normal", "--max_length", "3"),
            {"weak": "encoder"},
            "error: decoder: The row ",
        ),
        (
            (*ASKED, "--prompt_shots", "17"),
            {},
            "--prompt_shots: got 17, expected at most 16, the number of training rows",
        ),
        ((*ASKED, "--prompt_shots", "16"), {}, "--analyses prompting: decoder, spam: Got prompt "),
        (
            ("--methods", "self_labels", "--self_baselines", "false"),
            {"student": "short"},
            "--methods self_labels: short, spam: Got prompt ",
        ),
    ],
    ids=[
        "encoder",
        "unknown word",
        "no unembedding",
        "unknown word in prompts",
        "long prompt",
        "too many examples",
        "long examples",
        "long rows of a method",
    ],
)
def test_what_cannot_be_asked_is_refused_before_anything_is_trained(more, options, words, models, tmp_path, cache):
    process = run(models, tmp_path, cache, *more, **options)
    assert process.returncode == 1 and words in process.stderr, process.stderr[-2000:]
    assert not (tmp_path / "out").exists()


def test_a_student_of_other_labels_is_no_comparison_with_weak_labels():
    context = SimpleNamespace(
        result=SimpleNamespace(self_trained=True), methods=find_methods(["self_labels", "refined"])
    )
    assert self_trained_summary([context]) is None


def test_sharded_students_are_not_prompted_unless_it_is_requested(monkeypatch, caplog):
    args = ClassificationArguments()
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    monkeypatch.setattr("w2s_hf.experiments.self_baselines.check_decoder", lambda *names: pytest.fail("is loaded"))
    with caplog.at_level("INFO"):
        assert not has_self_baselines(TASKS["sst2"], None, args, None, seed=0)
    assert "are skipped with FSDP" in caplog.text
    assert "own answers" not in str(CLASSIFICATION.further_steps(args))


@pytest.mark.parametrize(
    ("recipe", "options", "words"),
    [
        ("anthropic_hh.py", "--head_init answers", "expected real models and a classification task"),
        ("boolq.py", "--head_init answers", "expected real models and a classification task"),
        ("boolq.py", "--use_prompts true", "Got --use_prompts and the demo"),
    ],
)
def test_what_has_no_prompt_is_refused(recipe, options, words, tmp_path, cache):
    process = recipe_here(*options.split(), "--output_dir", tmp_path / "out", cache=cache, name=recipe)
    assert process.returncode != 0 and words in process.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("log_odds", "prior", "at_median", "content_free"),
    [
        ([1, 2, 3, 4], [0], 1.0, 0.5),  # always the second answer, so only the order of probabilities is informative
        ([1, 2, 3, 4], [2.5], 1.0, 1.0),
        ([4, 3, 2, 1], [2.5], 0.0, 0.0),
        ([-1, 2, -1, 2], [-2, 3, -2, 1], 0.5, 0.75),  # each row has its own prior
        ([1e3, 1e3, 1e3, 1e3], [2e3], 0.5, 0.5),  # P(class 0) is 0 for all rows, and ties count as the first class
    ],
)
def test_a_preference_for_an_answer_hides_nothing_of_what_a_model_knows(log_odds, prior, at_median, content_free):
    def probabilities(values):
        values = torch.tensor(values, dtype=torch.float64)
        return torch.stack([-values / 2, values / 2], dim=1).softmax(dim=1).numpy()

    scores = balanced_scores(probabilities(log_odds), probabilities(prior), np.array([0, 0, 1, 1]))
    assert scores == {"accuracy_at_median": at_median, "accuracy_content_free": content_free}


def test_results_with_another_form_of_prompts_are_other_results():
    def form(**options):
        return _prompt_form(SimpleNamespace(**{"demo": False, **options}))

    assert form(prompt_form="task") == {"prompt_form": "task"}
    # The format of older versions, which had this form only. The demo has another one.
    assert form(prompt_form="01") == form() == form(prompt_form="task", demo=True) == {}


def test_only_a_head_of_answers_depends_on_the_prompt_of_a_task():
    task = own_task(prompt=FORM)
    for head_init in HEAD_INITS:
        spec = ModelSpec("model", "model", "version", StudentConfig(head_init=head_init))
        assert prompt_of_head(spec, task) == (FORM if head_init == "answers" else None)
    assert prompt_of_head(ModelSpec("model", "model", "version"), task) is None, "supervisors do not have this option"


def test_a_text_without_content_has_the_form_of_the_others():
    assert TASKS["sciq"].content_free == "Question: N/A\nAnswer: N/A"


@pytest.mark.real_data
@pytest.mark.parametrize("directory", ["gpt2", "qwen2", "smollm2"])
def test_the_answers_of_every_task_differ_in_their_first_token(directory):
    tokenizer = AutoTokenizer.from_pretrained(
        real_model() if directory == "smollm2" else real(f"tokenizers/{directory}")
    )
    assert len(TASKS) == 25
    for task in TASKS.values():
        first, second = head_tokens(tokenizer, task.prompt)
        assert first != second
        assert task.prompt.prompt("text").count("0") == 0, "answers are words, not numbers"


@pytest.mark.real_data
def test_the_prompt_of_the_guide_suits_the_student_of_cpu_real():
    """With the answers 0 and 1, `--head_init answers` would raise an error."""
    page = (Path(__file__).parents[1] / "docs" / "guides" / "own_task.md").read_text()
    namespace = {}
    for block in re.findall(r"```python\n(.*?)```", page, re.DOTALL):
        if "PromptFormat" in block:
            exec(block, namespace)
    tokenizer = AutoTokenizer.from_pretrained(real_model())
    for name in ("SPAM", "QUESTIONS", "SCIENCE"):
        first, second = head_tokens(tokenizer, namespace[name].prompt)
        assert first != second
    with pytest.raises(ValueError, match="expected different first tokens"):
        head_tokens(tokenizer, PromptFormat())


@pytest.mark.real_data
@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize(
    ("suffix", "answers"), [(" (", ("a", ")")), ("\nAnswer:", ("n", "//")), ("\nIt is good", (" x", "ness"))]
)
def test_a_real_tokenizer_joins_the_second_answer_with_the_suffix(suffix, answers, turned):
    form = PromptFormat(answers=answers[::-1] if turned else answers, suffix=suffix)
    with pytest.raises(ValueError, match="The tokenizer merges the suffix .* Use another suffix"):
        answer_tokens(AutoTokenizer.from_pretrained(real_model()), form)


@pytest.mark.real_data
@pytest.mark.parametrize("name", ["sst2", "sciq"])
def test_a_real_decoder_is_asked_as_in_ten_lines_of_transformers(name, tmp_path):
    directory, task = real_model(), TASKS[name]
    raw = {split: rows.select(range(300)) for split, rows in load_dataset(real(name)).items()}
    sizes = {"raw": DatasetDict(raw), "n_train": 16, "n_validation": 4, "n_test": 6}
    splits = load_task(task, **sizes)
    form, texts = task.prompt_format, splits.test["text"][:]

    tokenizer = AutoTokenizer.from_pretrained(directory)
    model = AutoModelForCausalLM.from_pretrained(directory, dtype="float32")
    tokens = [tokenizer(answer)["input_ids"][0] for answer in form.answers]
    expected = []
    for text in texts:
        prompt = form.instruction + form.prefix + text + form.suffix
        with torch.no_grad():
            logits = model(**tokenizer(prompt, return_tensors="pt")).logits[0, -1]
        expected.append(logits[tokens].softmax(dim=0).numpy())

    predictions = answer_probabilities(model.eval(), load_tokenizer(directory), list(map(form.prompt, texts)), form)
    np.testing.assert_allclose(predictions, expected, atol=1e-5)
    assert predictions[:, 1].std() > 1e-3
    config = StudentConfig(dtype="float32", head_init="answers", lora_r=4)
    spec = ModelSpec.find(directory, "--student_model", config)
    prompted = load_task(task.prompted(), **sizes).test
    assert prompted["text"][:] == list(map(form.prompt, texts))
    np.testing.assert_allclose(untrained_predictions(task, prompted, spec, tmp_path), expected, atol=1e-5)
