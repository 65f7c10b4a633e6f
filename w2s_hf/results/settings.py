"""The `settings` of `results.json`: the options of a run that can change its numbers."""

from dataclasses import dataclass

from .record import Record, always, named, rest

__all__ = ["RunSettings", "StudentSettings", "TrainingSettings"]


@dataclass(kw_only=True)
class TrainingSettings(Record):
    """
    The training settings of students and ceiling, and the settings in which the supervisor differs. The
    text in `named` is the key of a field in the JSON file, on cards and in reports.

    Args:
        arguments (`dict`): Arguments of the trainer that can change results, see `training_settings`.
    """

    arguments: dict = rest()
    early_stopping: str | None = named("early stopping")
    generative_finetuning: str | None = named("generative finetuning")
    generative_learning_rate: float | None = named("generative finetuning, learning_rate")
    generative_num_train_epochs: float | None = named("generative finetuning, num_train_epochs")
    weak_learning_rate: float | None = named("weak supervisor, learning_rate")
    weak_num_train_epochs: float | None = named("weak supervisor, num_train_epochs")
    weak_weight_decay: float | None = named("weak supervisor, weight_decay")
    n_supervisors: int | None = named("weak supervisors, of which the labels are the mean")
    keep_confident: float | None = named("weak labels that students learn, the most confident")


@dataclass(kw_only=True)
class StudentSettings(Record):
    """The settings of student models: use of adapters, precision, and `options` of adapters and quantization."""

    use_peft: bool
    dtype: str | None = None
    options: dict = rest()


@dataclass(kw_only=True)
class RunSettings(Record):
    """
    The options of a run.

    Args:
        training ([`TrainingSettings`]), student ([`StudentSettings`]): Settings of students and ceiling.
        losses (`dict[str, dict]`): Settings of the loss by method.
        loading (`dict`): Arguments of [`load_student`] that restore the precision of the training.
    """

    training: TrainingSettings
    student: StudentSettings
    losses: dict[str, dict] = always(factory=dict)
    loading: dict = always(factory=dict)
    extra: dict = rest()
