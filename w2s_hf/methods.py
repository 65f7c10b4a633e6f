"""The methods of training students on weak labels: a loss, a transform of the labels, and training arguments."""

import copy
import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import partial
from pathlib import Path
from typing import Any

from . import transforms
from .code_fingerprint import code_fingerprint
from .command_line import did_you_mean
from .config import LossArguments
from .labels import LabelsById
from .losses import ALL_LOSS_ARGUMENTS, LOSS_ARGUMENTS, LOSS_TYPES, OWN_LOSS, RowLoss
from .transforms import LabelContext
from .user_code import described, find_in_file, split_path, warn_of_change

__all__ = ["BOOTSTRAP", "METHODS", "NAIVE", "Method", "find_method", "find_methods"]

LabelTransform = Callable[[LabelContext], LabelsById]

# This method is not a loss. It trains a chain of students, each on the labels of the previous student.
BOOTSTRAP = "bootstrap"

# The experiment, not a method, decides these training arguments. Rows are tokenized, and predicted again, with the
# arguments of the experiment.
_OF_THE_EXPERIMENT = (
    "loss_type", "output_dir", "seed", "data_seed", "push_to_hub", "run_name", "resume_from_checkpoint", "max_length",
    "use_cpu", "bf16", "fp16", "report_to", "model_init_kwargs",
    # These arguments change the state of the process or of the loaded student, and so the training of other models.
    "disable_dropout", "gradient_checkpointing", "gradient_checkpointing_kwargs", "activation_checkpointing",
    "activation_checkpointing_kwargs", "activation_offloading",
    "tf32", "torch_compile", "full_determinism", "fp16_full_eval", "bf16_full_eval", "deepspeed", "fsdp",
    "fsdp_config", "accelerator_config", "parallelism_config", "torch_compile_backend", "torch_compile_mode",
    "use_liger_kernel", "liger_kernel_config",
    # Rows are tokenized before a trainer of TRL sets tokens or a template.
    "eos_token", "pad_token", "chat_template_path",
    "trust_remote_code",
)  # fmt: skip

# Results have other models with these names.
_OTHER_ROLES = r"weak|ceiling|ceiling_plain|control|direct|direct_all|zero-shot|link_?\d+"


@dataclass(frozen=True, eq=False)
class Method:
    """
    A method of training students on weak labels, as data.

    ```python
    def squared_error(logits, soft_labels, step):
        return (logits.softmax(dim=-1) - soft_labels).square().sum(dim=-1)

    MY_METHOD = Method("squared_error", loss=squared_error)  # w2s run boolq --methods naive my_method.py:MY_METHOD
    ```

    Args:
        name (`str`): The name in results, of letters, digits, `.`, `_` and `-`.
        loss (`str` or `Callable`, *optional*, defaults to `"xent"`): One of `w2s_hf.losses.LOSS_TYPES`, or a
            [`~w2s_hf.losses.RowLoss`]: a function of `logits` `(B, C)` float32, `soft_labels` `(B, C)` float32 and a
            [`~w2s_hf.losses.Step`]. It returns the loss of each row, `(B,)`. It is called per micro-batch, so the loss
            of a row must not depend on other rows.
        transform (`Callable`, *optional*): A function of a [`~w2s_hf.transforms.LabelContext`] that returns the labels
            of the student, with weights if needed. Without it, the student is trained on the labels of the supervisor.
        training_args (`dict`, *optional*): Arguments of the trainer that differ from the arguments of the experiment.
        source (`str`, *optional*): Publication or origin of the method.

    Raises:
        ValueError: The name has other characters, or the loss is unknown. The experiment sets one of the arguments, or
            the loss does not use it. The loss `learned_supervisors` has no transform.
        TypeError: Loss or transform is neither a function nor a `functools.partial` of a function, or depends on a
            value whose change would not be noticed. The transform needs another argument than the context.
    """

    name: str
    loss: str | RowLoss = "xent"
    transform: LabelTransform | None = None
    training_args: Mapping[str, Any] = field(default_factory=dict)
    source: str = ""
    code: str | None = field(init=False, repr=False, default=None)  # hashes of loss and transform
    loss_code: str | None = field(init=False, repr=False, default=None)
    transform_code: str | None = field(init=False, repr=False, default=None)

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]*", self.name):
            raise ValueError(
                f"Method: got the name {self.name!r}, expected letters, digits, '.', '_' and '-'. Files have this "
                "name. Choose another name."
            )
        if re.fullmatch(_OTHER_ROLES, self.name):
            raise ValueError(
                f"Method: got the name {self.name!r}, which another model has in the results, expected a new name. "
                "Choose another name."
            )
        if isinstance(self.loss, str) and self.loss not in LOSS_TYPES:
            raise ValueError(
                f"Method {self.name}: got the loss {self.loss!r}, expected a function or one of "
                f"{', '.join(LOSS_TYPES)}.{did_you_mean(self.loss, LOSS_TYPES)}"
            )
        if self.needs_supervisors and self.transform is None:
            raise ValueError(
                f"Method {self.name}: got the loss {self.loss!r} and no transform, expected a transform that returns "
                "the labels of each supervisor. Set transform=w2s_hf.transforms.all_supervisors."
            )
        # Arguments of the Hub would have no effect, and results and cards would show a token.
        wrong = [name for name in self.training_args if name in _OF_THE_EXPERIMENT or name.startswith("hub_")]
        if wrong:
            raise ValueError(
                f"Method {self.name}: got training_args with {wrong[0]}, which the experiment sets, expected other "
                f"arguments. Remove {wrong[0]}."
            )
        read = LOSS_ARGUMENTS.get(self.loss, ()) if isinstance(self.loss, str) else ()
        unread = [name for name in self.training_args if name in ALL_LOSS_ARGUMENTS and name not in read]
        if unread:
            raise ValueError(
                f"Method {self.name}: got training_args with {unread[0]}, which its loss does not use, expected "
                f"arguments of its loss or the trainer. Remove {unread[0]}, or set another loss."
            )
        functions = {"loss": self.loss, "transform": self.transform}
        for what, function in functions.items():
            is_name = what == "loss" and isinstance(function, str)
            if function is not None and not is_name and not callable(function):
                raise TypeError(
                    f"Method {self.name}: got a {what} of type {type(function).__name__}, expected a function. Pass a "
                    "function."
                )
        object.__setattr__(self, "training_args", dict(self.training_args))
        codes = {what: code_fingerprint(function) for what, function in functions.items() if callable(function)}
        if self.transform is not None:
            try:
                inspect.signature(self.transform, follow_wrapped=False).bind(None)
            except TypeError as error:
                raise TypeError(
                    f"Method {self.name}: got a transform that cannot be called with one argument, the context: "
                    f"{error}. Define it as transform(context), or bind other arguments with functools.partial."
                ) from error
        object.__setattr__(self, "code", "-".join(codes.values()) or None)
        object.__setattr__(self, "loss_code", codes.get("loss"))
        object.__setattr__(self, "transform_code", codes.get("transform"))

    @property
    def loss_function(self) -> RowLoss | None:
        """The loss if it is a function, for the argument `loss` of a trainer. `None` for a loss of the package."""
        return None if isinstance(self.loss, str) else self.loss

    @property
    def config(self) -> dict[str, Any]:
        """
        The keyword arguments of the trainer's configuration: `loss_type`, and `training_args`. If the loss is a
        function, `loss_type` is `"own"`, and the trainer needs the function as `loss`.
        """
        return {"loss_type": self.loss if isinstance(self.loss, str) else OWN_LOSS, **self.training_args}

    def settings(self, training_args: Any) -> dict[str, Any]:
        """
        Returns the settings of the method for results and cards, as JSON values: the loss with its arguments, the
        transform, and the training arguments. Methods of your own have a hash of their code.

        Args:
            training_args ([`~transformers.TrainingArguments`]): The arguments of the experiment.

        Raises:
            ValueError: The method has training arguments that the trainer does not have.
        """
        known = [argument.name for argument in fields(training_args)]
        unknown = [name for name in self.training_args if name not in known]
        if unknown:
            raise ValueError(
                f"Method {self.name}: got training_args with {unknown[0]}, expected arguments of "
                f"{type(training_args).__name__}.{did_you_mean(unknown[0], known)}"
            )
        settings: dict[str, Any] = {}
        if isinstance(self.loss, str) and isinstance(training_args, LossArguments):
            changed = copy.copy(training_args)
            vars(changed).update(self.training_args)  # a new object would change the state of accelerate
            settings = changed.loss_settings(self.loss)
        elif not isinstance(self.loss, str):
            settings["loss"] = described(self.loss)
        if self.transform is not None:
            settings["transform"] = described(self.transform)
        if not self.is_built_in:
            facts = {"code": self.code, "source": self.source}
            settings |= {name: value for name, value in facts.items() if value}
        return settings | {name: value for name, value in self.training_args.items() if name not in ALL_LOSS_ARGUMENTS}

    @property
    def needs_prompts(self) -> bool:
        """Returns whether the transform uses zero-shot answers, so that the student must be a decoder."""
        function, prior = self.transform, "zero_shot"
        if isinstance(function, partial):
            prior = function.keywords.get("prior", prior)
            function = function.func
        return function is transforms.self_labels or function is transforms.noisy_channel and prior == "zero_shot"

    @property
    def needs_probabilities(self) -> bool:
        """Returns whether the method is for class probabilities only, and not for completions."""
        function = self.transform.func if isinstance(self.transform, partial) else self.transform
        return self.loss != "xent" or getattr(function, "__module__", None) == transforms.__name__

    @property
    def needs_supervisors(self) -> bool:
        """Returns whether the loss combines the labels of several supervisors."""
        return self.loss == "learned_supervisors"

    @property
    def is_built_in(self) -> bool:
        """Returns whether the method is a method of the package."""
        known = METHODS.get(self.name)
        if known is None or known is self:
            return known is self
        # A copy, which another process or `copy.deepcopy` has made
        return all(getattr(self, name) == getattr(known, name) for name in ("loss", "code", "training_args", "source"))


NAIVE = Method("naive", source="Burns et al. 2023, section 3: cross-entropy with the weak labels")

_REVERSE = "arXiv 2502.11107"
_BREGMAN = "arXiv 2505.24313"
_RESEARCHER = "automated weak-to-strong researcher (Anthropic Fellows 2026)"
_BUILT_IN = (
    NAIVE,
    Method("confidence", "confidence", source="Burns et al. 2023, appendix A.4: auxiliary confidence loss"),
    Method(
        "openai", "openai", source="openai/weak-to-strong: confidence loss with the schedule of the published code"
    ),
    Method("product", "product", source="Burns et al. 2023, appendix B: product of weak label and prediction"),
    Method("entropy", "entropy", source="Burns et al. 2023, appendix B: entropy minimization"),
    Method("window", "window", source="EleutherAI/w2s: loss on rows of which the student is unsure"),
    Method("adaptive_confidence", "adaptive_confidence", source="arXiv 2402.03749: confidence weight per row"),
    # Losses that are not a cross-entropy with the weak labels
    Method("reverse_kl", "reverse_kl", source=f"{_REVERSE}: reverse KL divergence"),
    Method("reverse_xent", "reverse_xent", source=f"{_REVERSE}: reverse cross-entropy"),
    Method("symmetric", "symmetric", source=f"{_BREGMAN}: sum of cross-entropy and reverse cross-entropy"),
    Method(
        "cace", "cace", source=f"{_BREGMAN}: cross-entropy for sure labels, reverse cross-entropy for other labels"
    ),
    # Transforms of the weak labels
    Method("most_confident", transform=transforms.most_confident, source="Burns et al. 2023, appendix B"),
    Method("confident", transform=transforms.confident, source=f"{_RESEARCHER}: confident-only baseline"),
    Method("calibrated", transform=transforms.calibrated, source="Guo et al. 2017: temperature scaling"),
    Method("margin_weighted", transform=transforms.margin_weighted, source="arXiv 2603.04968: weight of CW-PO"),
    Method("self_labels", transform=transforms.self_labels, source=f"{_RESEARCHER}; arXiv 2506.10139"),
    Method("noisy_channel", transform=transforms.noisy_channel, source=f"Dawid and Skene 1979; {_RESEARCHER}"),
    Method(
        "noisy_channel_student",
        transform=partial(transforms.noisy_channel, prior="student"),
        source=f"Dawid and Skene 1979; {_RESEARCHER}",
    ),
    Method("refined", transform=transforms.refined, source="arXiv 2501.07886: iterative label refinement"),
    *(
        Method(f"{name}_{kind}", transform=partial(transform, kind=kind), source=f"EleutherAI/w2s: {what} by a probe")
        for name, transform, what in (
            ("relabelled", transforms.relabelled_by_probe, "labels replaced"),
            ("filtered", transforms.filtered_by_probe, "rows dropped"),
        )
        for kind in ("logistic", "knn")
    ),
    Method("filtered_topology", transform=transforms.filtered_by_topology, source="EleutherAI/w2s: rows dropped"),
    # Labels of several supervisors (--n_supervisors)
    Method(
        "learned_supervisors", "learned_supervisors", transforms.all_supervisors, source="arXiv 2510.21332 (RAVEN)"
    ),
)
METHODS: dict[str, Method] = {method.name: method for method in _BUILT_IN}


def find_method(method: str | Method, option: str = "--methods") -> Method:
    """
    Returns a method of the package by its name, or a method in a Python file by its path, `my_method.py:NAME`. A
    [`Method`] is returned as it is.

    Raises:
        ValueError: No method has this name, the file raises an error, or its method has the name of another method.
        FileNotFoundError: The file does not exist.
    """
    found = method if isinstance(method, Method) else None
    if isinstance(method, str) and (place := split_path(method)) is not None:
        path, variable = place
        path = path.resolve()
        warn_of_change(path)
        # Each file is run once, so that a process always uses the same code.
        found = find_in_file(path, variable, Method, what="method", kind_name="w2s_hf.Method", is_run_once=True)
    if found is not None:
        if found.name in (*METHODS, BOOTSTRAP) and not found.is_built_in:
            raise ValueError(
                f"{option}: got a method with the name {found.name!r}, which is the name of a method of the package. "
                "Rename the method."
            )
        return found
    if not isinstance(method, str):
        raise TypeError(
            f"{option}: got {method!r}, expected names, files or w2s_hf.Method objects. For a loss, write "
            '`Method("my_method", loss=my_loss)`.'
        )
    if method not in METHODS:
        known = (*METHODS, BOOTSTRAP)
        if "," in method:
            raise ValueError(f"{option}: got {method}, expected names separated by spaces. Replace the commas.")
        if Path(f"{method}.py").is_file():
            raise ValueError(f"{option}: got {method!r}, expected a method or a file. Did you mean '{method}.py'?")
        raise ValueError(
            f"{option}: got {method}, expected some of {', '.join(known)}, or a Python file that defines a "
            f"w2s_hf.Method, such as my_method.py:NAME.{did_you_mean(method, known)}"
        )
    return METHODS[method]


def find_methods(methods: Sequence[str | Method], option: str = "--methods") -> dict[str, Method]:
    """
    Returns methods by name, in order. The value of `bootstrap` is the method of the links of the chain, `naive`.

    Raises:
        ValueError, FileNotFoundError: See [`find_method`]. There is no method, or two methods have one name.
    """
    if not methods:
        raise ValueError(f"{option}: got none, expected some of {', '.join((*METHODS, BOOTSTRAP))}.")
    by_name: dict[str, Method] = {}
    for entry in methods:
        method = NAIVE if entry == BOOTSTRAP else find_method(entry, option)
        name = BOOTSTRAP if entry == BOOTSTRAP else method.name
        if name in by_name:
            shown = " ".join(part.name if isinstance(part, Method) else part for part in methods)
            raise ValueError(f"{option}: got duplicate names: {shown}. Remove one {name}.")
        by_name[name] = method
    return by_name
