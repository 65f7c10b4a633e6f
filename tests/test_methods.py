"""Tests methods as data: their checks, their settings, and methods in files of users."""

import copy
import dataclasses
import pickle
from functools import partial, wraps
from pathlib import Path

import pytest
import torch
from helpers.chains import student
from helpers.models import make_rows, make_tokenizer
from helpers.training import arguments, train
from transformers import TrainerControl, TrainerState

from w2s_hf import METHODS, Method, WeakToStrongConfig, WeakToStrongTrainer, transforms
from w2s_hf.experiments.config import ClassificationArguments, GenerationArguments
from w2s_hf.losses import LOSS_TYPES, Step
from w2s_hf.methods import BOOTSTRAP, NAIVE, find_method, find_methods
from w2s_hf.trainers.row_loss import check_row_loss, row_losses_of, try_row_loss
from w2s_hf.trainers.student_card import StudentCardCallback
from w2s_hf.user_code import described

FILE = """
from w2s_hf import Method
from w2s_hf.transforms import confident

def squared_error(logits, soft_labels, step):
    return (logits.softmax(dim=-1) - soft_labels).square().sum(dim=-1)

MINE = Method("squared_error", loss=squared_error, training_args={"learning_rate": 1e-3}, source="me")
"""


def squared_error(logits, soft_labels, step):
    return (logits.softmax(dim=-1) - soft_labels).square().sum(dim=-1)


def labels_of(context, share=0.5):
    return context.labels(context.probabilities)


# ---- The class ----


def test_every_loss_of_the_package_has_a_method_of_its_name():
    assert set(LOSS_TYPES) - set(METHODS) == {"xent"}, "its method is `naive`"
    for name, method in METHODS.items():
        assert method.name == name and method.is_built_in and method.source
        assert method.loss == (name if name in LOSS_TYPES else "xent")
        is_loss = name in LOSS_TYPES and not method.needs_supervisors
        assert (method.transform is None) == (is_loss or name == "naive")
    assert len({method.code for method in METHODS.values()} - {None}) == sum(
        method.transform is not None for method in METHODS.values()
    )


def with_share(context, share):
    return context.labels(context.probabilities * share)


@wraps(with_share)
def with_half(context):
    return with_share(context, 0.5)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"name": "a b"}, ValueError, "got the name 'a b', expected letters, digits"),
        ({"name": ""}, ValueError, "got the name ''"),
        ({"name": "../a"}, ValueError, "Files have this name"),
        ({"name": ".a"}, ValueError, "Choose another name"),
        ({"name": "weak"}, ValueError, "got the name 'weak', which another model has in the results"),
        ({"name": "link2"}, ValueError, "got the name 'link2', which another model has"),
        ({"loss": "confidense"}, ValueError, "Method m: got the loss 'confidense'.* Did you mean 'confidence'"),
        ({"loss": 3}, TypeError, "Method m: got a loss of type int, expected a function"),
        ({"transform": "confident"}, TypeError, "Method m: got a transform of type str, expected a function"),
        ({"transform": 3}, TypeError, "Method m: got a transform of type int, expected a function"),
        (
            {"transform": with_share},
            TypeError,
            "one argument, the context: missing a required argument: 'share'",
        ),
        ({"transform": max}, TypeError, "function"),
        ({"training_args": {"seed": 3}}, ValueError, "training_args with seed, which the experiment sets"),
        ({"training_args": {"loss_type": "xent"}}, ValueError, "Remove loss_type"),
        ({"training_args": {"tf32": True}}, ValueError, "training_args with tf32, which the experiment sets"),
        # Students of other methods have the same loaded base.
        ({"training_args": {"disable_dropout": False}}, ValueError, "disable_dropout, which the experiment sets"),
        (
            {"training_args": {"gradient_checkpointing": True}},
            ValueError,
            "gradient_checkpointing, which the experiment",
        ),
        (
            {"training_args": {"hub_token": "hf_x"}},
            ValueError,
            "training_args with hub_token, which the experiment sets",
        ),
        ({"training_args": {"eos_token": "!"}}, ValueError, "training_args with eos_token, which the experiment sets"),
        ({"training_args": {"trust_remote_code": True}}, ValueError, "Remove trust_remote_code"),
        ({"training_args": {"model_init_kwargs": {}}}, ValueError, "model_init_kwargs, which the experiment sets"),
        ({"training_args": {"aux_coef": 0.75}}, ValueError, "with aux_coef, which its loss does not use"),
        ({"loss": squared_error, "training_args": {"aux_coef": 0.75}}, ValueError, "Remove aux_coef, or set another"),
        ({"loss": "product", "training_args": {"aux_start": "agreement"}}, ValueError, "Remove aux_start"),
        ({"loss": partial(squared_error, step=torch.nn.ReLU())}, TypeError, "argument step with a value of type ReLU"),
    ],
)
def test_a_method_that_cannot_be_used_is_refused(arguments, error, message):
    with pytest.raises(error, match=message):
        Method(**{"name": "m"} | arguments)


def test_a_transform_may_wrap_a_function_of_more_arguments():
    assert Method("m", transform=with_half).transform is with_half


def test_a_method_does_not_change():
    given = {"learning_rate": 1e-3}
    method = Method("m", squared_error, labels_of, given)
    given["learning_rate"] = 1
    assert method.training_args == {"learning_rate": 1e-3}
    with pytest.raises(dataclasses.FrozenInstanceError):
        method.loss = "xent"
    renamed = dataclasses.replace(method, name="n")
    assert (renamed.name, renamed.code, renamed.training_args) == ("n", method.code, method.training_args)


def test_methods_can_be_copied_and_pickled():
    for method in (METHODS["noisy_channel_student"], Method("m", squared_error, labels_of, {"learning_rate": 1e-3})):
        for copied in (copy.deepcopy(method), pickle.loads(pickle.dumps(method))):
            assert (copied.name, copied.code, copied.training_args) == (method.name, method.code, method.training_args)
            assert copied.is_built_in == method.is_built_in
    args = ClassificationArguments(methods=["naive", method])
    assert dataclasses.asdict(args)["methods"][1]["training_args"] == {"learning_rate": 1e-3}
    assert not Method("naive").is_built_in


def test_the_trainer_gets_a_loss_and_the_configuration_other_arguments():
    method = Method("m", squared_error, training_args={"weight_decay": 0.5})
    assert method.loss_function is squared_error
    assert method.config == {"loss_type": "own", "weight_decay": 0.5}
    assert METHODS["product"].loss_function is None and METHODS["product"].config == {"loss_type": "product"}
    assert METHODS["confident"].config == {"loss_type": "xent"} == NAIVE.config


def test_settings_of_results_name_all_that_differs_from_naive_finetuning(tmp_path):
    args = arguments(tmp_path, aux_coef=0.25)
    for name in LOSS_TYPES:
        method = "naive" if name == "xent" else name
        transform = {"transform": "all_supervisors"} if METHODS[method].needs_supervisors else {}
        assert METHODS[method].settings(args) == args.loss_settings(name) | transform
    naive = args.loss_settings("xent")
    assert METHODS["confident"].settings(args) == {**naive, "transform": "confident"}
    assert METHODS["filtered_knn"].settings(args) == {**naive, "transform": "filtered_by_probe(kind='knn')"}
    loss = Method("a", squared_error)
    both = Method("b", squared_error, partial(labels_of, share=0.25), {"max_steps": 3})
    assert loss.settings(args) == {"loss": "squared_error", "code": loss.code}
    assert both.settings(args) == {
        "loss": "squared_error", "transform": "labels_of(share=0.25)", "code": both.code, "max_steps": 3
    }  # fmt: skip
    late = Method("d", "confidence", training_args={"aux_coef": 0.75, "aux_start": "first_step", "max_steps": 3})
    added = {"aux_coef": 0.75, "max_steps": 3, "code": late.code}
    assert late.settings(args) == args.loss_settings("confidence") | {k: v for k, v in added.items() if v is not None}
    unset = Method("e", "confidence", training_args={"aux_warmup_ratio": None})
    assert unset.settings(args) == args.loss_settings("confidence") and args.aux_coef == 0.25
    with pytest.raises(ValueError, match="got training_args with lerning_rate.* Did you mean 'learning_rate'"):
        Method("c", training_args={"lerning_rate": 1}).settings(args)
    first, second = both.code.split("-")
    assert first == loss.code == both.loss_code and second == Method("c", transform=both.transform).code


def test_methods_that_ask_the_base_model_need_prompts():
    needing = {name for name, method in METHODS.items() if method.needs_prompts}
    assert needing == {"self_labels", "noisy_channel"}
    assert Method("m", transform=partial(transforms.noisy_channel, prior="zero_shot")).needs_prompts
    assert Method("m", transform=partial(transforms.self_labels)).needs_prompts
    assert not Method("m", transform=labels_of).needs_prompts


# ---- Methods by name and in files ----


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(FILE)
    return path


def test_methods_are_found_by_name_in_files_and_as_objects(file, tmp_path, monkeypatch):
    own = Method("own", squared_error)
    found = find_methods(["naive", BOOTSTRAP, f"{file}:MINE", own])
    assert list(found) == ["naive", BOOTSTRAP, "squared_error", "own"]
    assert found["naive"] is found[BOOTSTRAP] is NAIVE and found["own"] is own
    mine = found["squared_error"]
    assert mine.training_args == {"learning_rate": 1e-3} and not mine.is_built_in
    monkeypatch.chdir(tmp_path)
    assert find_method("mine.py") is mine, "a process runs each file once"
    args = ClassificationArguments(methods=[own, "naive", str(file)])
    assert list(args.methods_by_name) == ["own", "naive", "squared_error"]


@pytest.mark.parametrize(
    ("methods", "message"),
    [
        ([], "--methods: got none, expected some of naive, "),
        (["naive,confidence"], "got naive,confidence, expected names separated by spaces. Replace the commas"),
        (["confidense"], "got confidense, expected some of naive, .* Did you mean 'confidence'"),
        (["mine"], "got 'mine', expected a method or a file. Did you mean 'mine.py'?"),
        (["naive", "naive"], "got duplicate names: naive naive. Remove one naive."),
        (["mine.py", "mine.py:MINE"], "got duplicate names: .* Remove one squared_error."),
        ([Method("own"), Method("own")], "got duplicate names: own own. Remove one own."),
        ([Method("naive")], "got a method with the name 'naive', which is the name of a method of the package"),
        ([Method("bootstrap")], "got a method with the name 'bootstrap', which is the name of a method"),
        (["mine.py:OTHER"], "defines MINE, expected a method 'OTHER'. Add the name of a method: `.*mine.py:MINE`"),
    ],
)
def test_methods_that_are_not_found_say_what_to_do(methods, message, file, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=message):
        find_methods(methods)


def test_a_changed_file_is_a_warning_once(file, caplog):
    method = find_method(str(file))
    for text, n_warnings in ((FILE, 0), (FILE + "# a change\n", 1), (FILE + "# a change\n", 1), (FILE + "1\n", 2)):
        file.write_text(text)
        assert find_method(str(file)) is method
        assert [record.getMessage() for record in caplog.records] == n_warnings * [
            "mine.py has changed since this process loaded it, and the loaded version is used. Restart the process "
            "(in a notebook, the kernel)."
        ]
    file.write_bytes(b"\xff")  # not UTF-8
    assert find_method(str(file)) is method and len(caplog.records) == 3
    file.unlink()
    assert find_method(str(file)) is method


def test_all_methods_of_a_file_are_those_of_its_first_version(file, caplog):
    method = find_method(f"{file}:MINE")
    file.write_text(FILE + 'OTHER = Method("other")\n')
    with pytest.raises(ValueError, match="expected a method 'OTHER'"):
        find_method(f"{file}:OTHER")
    assert find_method(f"{file}:MINE") is method and "mine.py has changed" in caplog.text


@pytest.mark.parametrize(
    ("content", "error", "message"),
    [
        (None, FileNotFoundError, "method: got '.*mine.py', expected an existing file"),
        ("", ValueError, r"defines no w2s_hf\.Method, expected one method. Define one in this file"),
        (FILE + "B = Method('b')\n", ValueError, "defines MINE, B, expected one method. .*mine.py:MINE"),
        (FILE.replace("squared_error:", "x:").replace("(logits, ", "(logits("), ValueError, "line 5 with SyntaxError"),
        (FILE + "\n1 / 0\n", ValueError, "fails in line 10 with ZeroDivisionError: division by zero. Run `python "),
        (FILE.replace("1e-3", "1e-3, 'seed': 1"), ValueError, "fails in line 8 with ValueError: .* with seed"),
        (
            FILE.replace('"squared_error"', '"naive"'),
            ValueError,
            "with the name 'naive', which is the name of",
        ),
        (FILE.replace('"squared_error"', '"bootstrap"'), ValueError, "Rename the method"),
    ],
)
def test_a_file_without_a_usable_method_says_so(content, error, message, tmp_path):
    if content is not None:
        (tmp_path / "mine.py").write_text(content)
    with pytest.raises(error, match=message):
        find_method(str(tmp_path / "mine.py"))


def test_completions_have_methods_without_a_loss():
    assert "own" in GenerationArguments(methods=["naive", Method("own", transform=labels_of)]).methods_by_name
    for method in ("confidence", "confident", Method("own", squared_error)):
        with pytest.raises(ValueError, match="expected naive, bootstrap or a method of your own with the loss xent"):
            GenerationArguments(methods=["naive", method])


# ---- Losses ----

STEP = Step(1, 2)


@pytest.mark.parametrize(
    ("loss", "message"),
    [
        (lambda logits, labels, step: logits.sum(), r"got a result of shape \(\) for 3 rows, expected the shape \(3,"),
        (lambda logits, labels, step: logits, r"got a result of shape \(3, 2\)"),
        (lambda logits, labels, step: 1.0, "got a result of type float"),
        (lambda logits, labels, step: logits.detach().sum(1), "got losses without gradient"),
        (lambda logits, labels, step: logits.log().sum(1), r"got nan for the logits \[-1.0, 2.0\] and the soft label"),
        (lambda logits, labels, step: {}["a"], "line [0-9]+ raised KeyError: 'a'"),
        (
            lambda logits, labels: logits.sum(1),
            "line [0-9]+ raised TypeError: .* takes 2 positional arguments",
        ),
    ],
)
def test_a_loss_with_another_result_is_refused(loss, message):
    logits = torch.tensor([[1.0, 2.0], [-1.0, 2.0], [1.0, 1.0]], requires_grad=True)
    with pytest.raises(ValueError, match=message):
        row_losses_of(loss, logits, torch.full((3, 2), 0.5), STEP)


def test_an_evaluation_needs_no_gradient():
    with torch.no_grad():
        losses = row_losses_of(squared_error, torch.zeros(3, 2), torch.eye(2)[[0, 1, 0]], STEP)
    assert losses.tolist() == [0.5, 0.5, 0.5]


def test_a_trainer_has_either_a_loss_or_a_loss_type(model_of, tokenizer, tmp_path):
    config = WeakToStrongConfig(output_dir=str(tmp_path), loss_type="product", use_cpu=True, bf16=False)
    with pytest.raises(ValueError, match="Got a loss function and loss_type='product', expected one of them"):
        check_row_loss(squared_error, config)
    with pytest.raises(TypeError, match="loss: got 'product', expected a function of logits, soft labels and step"):
        check_row_loss("product", config)
    check_row_loss(None, config)


def test_cards_of_trainers_name_the_loss_of_a_user(tmp_path):
    args = arguments(tmp_path)
    for loss, has_hash in (
        (squared_error, True),
        (partial(squared_error, factor=2), True),
        (partial(squared_error, factor=object()), False),
    ):
        trainer = WeakToStrongTrainer(student(0), args, processing_class=make_tokenizer(), loss=loss)
        callback = next(one for one in trainer.callback_handler.callbacks if isinstance(one, StudentCardCallback))
        callback.on_train_begin(args, TrainerState(max_steps=3), TrainerControl())
        settings = trainer.card.settings
        assert trainer.card.method == "squared_error" and "loss_type" not in settings
        if has_hash:  # as in results of a method with this loss
            assert Method("m", loss).settings(args).items() <= settings.items()
    assert settings["loss"].startswith("squared_error(factor=object)") and "code" not in settings


def test_a_batch_of_eight_is_two_of_four(model_of, tokenizer, tmp_path):
    """The loss of an optimizer step is the mean of the losses of all its rows."""

    class Trainer(WeakToStrongTrainer):
        def __init__(self, **kwargs):
            super().__init__(**kwargs, loss=squared_error)

    trajectories = []
    for n_micro in (1, 2):
        sizes = {"per_device_train_batch_size": 8 // n_micro, "gradient_accumulation_steps": n_micro}
        place = tmp_path / str(n_micro)
        trajectories.append(train(model_of(), tokenizer, place, make_rows(24), trainer_class=Trainer, **sizes)[1])
    torch.testing.assert_close(*trajectories, rtol=1e-4, atol=1e-5)
    _, plain = train(model_of(), tokenizer, tmp_path / "plain", make_rows(24))
    assert not torch.allclose(plain, trajectories[0])


def test_a_description_is_the_same_in_every_process_and_has_no_paths():
    def transform(context, words, function, folder, path):
        return context.weak_labels

    bound = partial(
        transform, words={"a", "b"}, function=squared_error, folder="/home/me/secret", path=Path("/home/me")
    )
    assert described(bound) == "transform(words=set, function=squared_error, folder='secret', path=PosixPath)"


def test_a_config_of_an_own_loss_needs_the_loss(tmp_path, model_of):
    method = Method("mine", squared_error)
    args = WeakToStrongConfig(output_dir=str(tmp_path), use_cpu=True, report_to="none", **method.config)
    assert args.loss_type == "own" and args.loss_settings("own") == {"loss_type": "own"}
    with pytest.raises(ValueError, match="loss_type: got 'own' and no loss, expected a function. Pass the function"):
        WeakToStrongTrainer(model_of(), args, train_dataset=make_rows(4), processing_class=make_tokenizer())


def test_a_loss_is_tried_before_anything_is_trained(caplog):
    def mean(logits, soft_labels, step):
        return squared_error(logits, soft_labels, step).mean()

    def of_others(logits, soft_labels, step):
        row_losses = squared_error(logits, soft_labels, step)
        return row_losses * (row_losses > row_losses.mean())

    def noisy(logits, soft_labels, step):
        return squared_error(logits, soft_labels, step) * torch.rand(len(logits))

    with pytest.raises(ValueError, match="loss mean: got a result of shape .* for 4 rows, expected the shape"):
        try_row_loss(mean)
    for loss, is_told in ((squared_error, False), (noisy, False), (of_others, True)):
        caplog.clear()
        try_row_loss(loss)
        assert ("the losses of two rows change if other rows are in the batch" in caplog.text) == is_told
