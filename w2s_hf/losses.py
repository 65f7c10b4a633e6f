"""The losses of a student on soft labels, as pure functions on tensors.

All losses take `logits` `(B, C)` of any float dtype and `soft_labels` `(B, C)`, probabilities that sum to 1 per row.
They compute in float32 and return the mean over the B rows, or the losses `(B,)` with `reduction="none"`. Most losses
are cross-entropies that differ in their target. The reverse losses exchange the roles of weak label and prediction.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch.nn.functional import cross_entropy

__all__ = [
    "ALL_LOSS_ARGUMENTS",
    "LOSS_ARGUMENTS",
    "LOSS_TYPES",
    "OWN_LOSS",
    "RowLoss",
    "Step",
    "adaptive_confidence_loss",
    "cace_loss",
    "combined_labels",
    "confidence_loss",
    "confidence_threshold",
    "cross_entropy_loss",
    "entropy_loss",
    "linear_warmup",
    "openai_warmup",
    "product_loss",
    "reverse_cross_entropy_loss",
    "reverse_kl_loss",
    "supervisor_gradients",
    "symmetric_loss",
    "window_loss",
]

# Each loss has the fields of `LossArguments` that it reads. "openai" is confidence_loss with openai_warmup.
# "learned_supervisors" is cross_entropy_loss with combined_labels.
LOSS_ARGUMENTS: dict[str, tuple[str, ...]] = {
    "xent": (),
    "confidence": ("aux_coef", "aux_warmup_ratio", "aux_start", "aux_prior"),
    "openai": ("aux_coef", "aux_warmup_ratio", "aux_start", "aux_prior"),
    "product": ("product_alpha", "product_beta"),
    "entropy": ("aux_coef", "aux_warmup_ratio", "aux_start"),
    "window": ("window_radius",),
    "adaptive_confidence": ("adaptive_temperature",),
    "reverse_kl": ("reverse_smoothing",),
    "reverse_xent": ("reverse_smoothing",),
    "symmetric": ("symmetric_alpha", "symmetric_beta", "reverse_smoothing"),
    "cace": ("cace_threshold", "reverse_smoothing"),
    "learned_supervisors": ("supervisor_learning_rate", "supervisor_warmup_epochs"),
}
LOSS_TYPES = tuple(LOSS_ARGUMENTS)
ALL_LOSS_ARGUMENTS = frozenset(name for names in LOSS_ARGUMENTS.values() for name in names)
# This `loss_type` stands for a function that is passed to the trainer as `loss`.
OWN_LOSS = "own"

_SMALLEST_PROBABILITY = 1e-6  # of the labels of supervisors, whose logarithms are used


class Step(NamedTuple):
    """
    An optimizer step, for a loss that changes during training.

    Args:
        number (`int`): Number of finished optimizer steps.
        n_steps (`int`): Number of all optimizer steps of the training.
    """

    number: int
    n_steps: int

    @property
    def share(self) -> float:
        """Finished steps as a share of all steps, in [0, 1)."""
        return self.number / max(self.n_steps, 1)


# A loss of a user is a function of logits `(B, C)`, soft labels `(B, C)` and step. It returns a loss per row, `(B,)`.
RowLoss = Callable[[torch.Tensor, torch.Tensor, Step], torch.Tensor]


def _reduce(row_losses: torch.Tensor, reduction: str) -> torch.Tensor:
    if reduction not in ("mean", "none"):
        raise ValueError(f"reduction: got {reduction!r}, expected 'mean' or 'none'. Pass 'none' for a loss per row.")
    return row_losses.mean() if reduction == "mean" else row_losses


def _check(logits: torch.Tensor, soft_labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    if not (torch.is_tensor(logits) and torch.is_tensor(soft_labels)):
        raise ValueError(
            f"Got logits as {type(logits).__name__} and soft labels as {type(soft_labels).__name__}, expected "
            "two arguments of type torch.Tensor. Convert them with torch.as_tensor."
        )
    if logits.ndim != 2 or logits.shape != soft_labels.shape:
        raise ValueError(
            f"Got logits of shape {tuple(logits.shape)} and soft labels of shape {tuple(soft_labels.shape)}, expected "
            "two tensors of shape (B, C). Pass one probability per class and row. "
            "w2s_hf.labels.as_probabilities converts classes and P(class 1)."
        )
    return logits.float(), soft_labels.float()


def cross_entropy_loss(logits: torch.Tensor, soft_labels: torch.Tensor, *, reduction: str = "mean") -> torch.Tensor:
    """
    Returns the cross-entropy with the weak labels, `-sum_c w_c log f_c`: naive finetuning (`xent`).

    Args:
        logits (`torch.Tensor` of shape `(B, C)`, any float dtype): Logits of the student.
        soft_labels (`torch.Tensor` of shape `(B, C)`): Weak labels as class probabilities.
        reduction (`str`, *optional*, defaults to `"mean"`): `"mean"` or `"none"`.

    Returns:
        `torch.Tensor`, float32: a scalar, or `(B,)`.

    Source: paper, section 3.
    """
    logits, soft_labels = _check(logits, soft_labels)
    return _reduce(cross_entropy(logits, soft_labels, reduction="none"), reduction)


def linear_warmup(step_ratio: float, aux_coef: float, warmup_ratio: float) -> float:
    """
    Returns the weight of an auxiliary term that rises linearly from 0 to `aux_coef`, and is constant afterwards.

    Args:
        step_ratio (`float` in [0, 1]): Finished optimizer steps as a share of all steps.
        aux_coef (`float` in [0, 1]): Final weight.
        warmup_ratio (`float` in [0, 1]): Share of the steps in which the weight rises. With 0, the
            weight is always `aux_coef`.

    Source: paper, A.4 ("over the first 20 % of training").
    """
    return aux_coef * min(1.0, step_ratio / warmup_ratio) if warmup_ratio > 0 else aux_coef


def openai_warmup(step_ratio: float, aux_coef: float, warmup_ratio: float) -> float:
    """
    Returns the weight of an auxiliary term by the schedule of the published code, for reproduction.

    The weight is `aux_coef * step_ratio` up to `warmup_ratio`. It then jumps to `aux_coef`, because the published code
    does not divide the ramp by `warmup_ratio`. The arguments are described in [`linear_warmup`].

    Source: openai/weak-to-strong, weak_to_strong/loss.py, with 0.5 and 0.1.
    """
    return aux_coef * (1.0 if step_ratio > warmup_ratio else step_ratio)


def confidence_threshold(probabilities: torch.Tensor, prior: float) -> torch.Tensor:
    """
    Returns the threshold t for which a share `prior` of rows has P(class 1) > t.

    The threshold must be computed over all rows of an optimizer step. For a single row, the threshold would be the
    probability of this row, and every row would get the hard label 0. An equal probability is not above the threshold.

    Args:
        probabilities (`torch.Tensor` of shape `(N,)`, any float dtype): P(class 1) of all rows of the step.
        prior (`float` in [0, 1]): Share of class 1.

    Returns:
        `torch.Tensor`, float32 scalar: the quantile at `1 - prior`, interpolated linearly.

    Source: paper, A.4 (half of the batch) and footnote 7 (the class prior if it is not one half).
    """
    if not 0 <= prior <= 1:
        raise ValueError(f"prior: got {prior}, expected a share between 0 and 1. Pass a value in this range.")
    if probabilities.ndim != 1 or not len(probabilities):
        raise ValueError(
            f"probabilities: got the shape {tuple(probabilities.shape)}, expected P(class 1) of shape (N,) with "
            "N > 0. Pass the rows of a step."
        )
    probabilities = probabilities.float()
    # torch.quantile rejects more than 16 million rows and a q of another dtype. Sorting is fast enough.
    ordered = probabilities.sort().values
    position = (1 - prior) * (len(ordered) - 1)
    lower = int(position)
    upper = min(lower + 1, len(ordered) - 1)
    return torch.lerp(ordered[lower], ordered[upper], position - lower)


def confidence_loss(
    logits: torch.Tensor,
    soft_labels: torch.Tensor,
    *,
    aux_weight: float,
    threshold: torch.Tensor | float | None = None,
    prior: float | None = None,
    reduction: str = "mean",
) -> torch.Tensor:
    """
    Returns the auxiliary confidence loss, `(1 - a) CE(f, w) + a CE(f, 1[f > t])`.

    The second term reinforces the student's own hard predictions, even if they differ from the weak labels.
    Cross-entropy is linear in its target, so the loss is one cross-entropy with the target `(1 - a) w + a 1[f > t]`.
    The target has no gradient.

    Args:
        logits (`torch.Tensor` of shape `(B, 2)`, any float dtype): Logits of the student.
        soft_labels (`torch.Tensor` of shape `(B, 2)`): Weak labels as class probabilities.
        aux_weight (`float` in [0, 1]): Weight a, see [`linear_warmup`].
        threshold (`torch.Tensor` or `float`, *optional*):
            Threshold t of P(class 1), see [`confidence_threshold`]. The default is computed over this batch, which is
            correct only if the batch is the whole optimizer step.
        prior (`float`, *optional*): Prior for the default threshold. Defaults to the mean weak label of the batch.
        reduction (`str`, *optional*, defaults to `"mean"`): `"mean"` or `"none"`.

    Returns:
        `torch.Tensor`, float32: a scalar, or `(B,)`.

    Raises:
        ValueError: There are not exactly two classes.

    Source: paper, A.4. In the paper, exactly half of the rows are above t. Here the share is the mean weak label by
    default (footnote 7), as in the published code.
    """
    logits, soft_labels = _check(logits, soft_labels)
    if logits.shape[1] != 2:
        raise ValueError(
            f"confidence_loss: got {logits.shape[1]} classes, expected 2. Use adaptive_confidence for other numbers."
        )
    probabilities = logits.detach().softmax(dim=-1)[:, 1]
    if threshold is None:
        threshold = confidence_threshold(probabilities, soft_labels[:, 1].mean().item() if prior is None else prior)
    positive = (probabilities > threshold).float()
    target = (1 - aux_weight) * soft_labels + aux_weight * torch.stack([1 - positive, positive], dim=1)
    return _reduce(cross_entropy(logits, target, reduction="none"), reduction)


def product_loss(
    logits: torch.Tensor, soft_labels: torch.Tensor, *, alpha: float = 1.0, beta: float = 1.0, reduction: str = "mean"
) -> torch.Tensor:
    """
    Returns the cross-entropy with the normalized product of weak label and student prediction, `w^alpha f^beta / Z`.

    The target has no gradient. It does not depend on other rows, unlike the target of [`confidence_loss`].

    Args:
        logits, soft_labels, reduction: See [`cross_entropy_loss`].
        alpha (`float`, *optional*, defaults to `1.0`): Exponent of the weak label.
        beta (`float`, *optional*, defaults to `1.0`): Exponent of the prediction.

    Source: paper, appendix B; openai/weak-to-strong, loss.py. In the published code, the target is 0/0 for a hard
    label and a saturated prediction. This function computes the target from logarithms with labels of at least 1e-6,
    so that it is always finite.
    """
    logits, soft_labels = _check(logits, soft_labels)
    log_target = alpha * soft_labels.clamp_min(1e-6).log() + beta * logits.detach().log_softmax(dim=-1)
    return _reduce(cross_entropy(logits, log_target.softmax(dim=-1), reduction="none"), reduction)


def entropy_loss(
    logits: torch.Tensor, soft_labels: torch.Tensor, *, aux_weight: float, reduction: str = "mean"
) -> torch.Tensor:
    """
    Returns `(1 - a) CE(f, w) + a H(f)`: [`confidence_loss`] with the soft instead of the hard prediction.

    Args:
        logits, soft_labels, reduction: See [`cross_entropy_loss`].
        aux_weight (`float` in [0, 1]): Weight a, see [`linear_warmup`].

    Source: paper, appendix B (entropy minimization). The loss of EleutherAI/w2s (loss.py) has the same value, but a
    constant target. The gradient of its second term is zero, so that the term only scales cross-entropy by 1 - a. In
    this function, the entropy has a gradient.
    """
    logits, soft_labels = _check(logits, soft_labels)
    log_probabilities = logits.log_softmax(dim=-1)
    entropy = -(log_probabilities.exp() * log_probabilities).sum(dim=-1)
    row_losses = (1 - aux_weight) * cross_entropy(logits, soft_labels, reduction="none") + aux_weight * entropy
    return _reduce(row_losses, reduction)


def window_loss(
    logits: torch.Tensor, soft_labels: torch.Tensor, *, radius: float = 0.15, reduction: str = "mean"
) -> torch.Tensor:
    """
    Returns the cross-entropy on rows whose largest predicted probability is below `0.5 + radius`. The loss of other
    rows is 0.

    The mean is over all B rows, so that gradients are small if the student is confident. If the student is confident
    about all rows, the loss is 0.

    Args:
        logits, soft_labels, reduction: See [`cross_entropy_loss`].
        radius (`float` in (0, 0.5], *optional*, defaults to `0.15`): Half width of the window.

    Source: EleutherAI/w2s, loss.py (confidence window).
    """
    logits, soft_labels = _check(logits, soft_labels)
    is_unsure = logits.detach().softmax(dim=-1).amax(dim=-1) < 0.5 + radius
    return _reduce(torch.where(is_unsure, cross_entropy(logits, soft_labels, reduction="none"), 0.0), reduction)


def adaptive_confidence_loss(
    logits: torch.Tensor, soft_labels: torch.Tensor, *, temperature: float = 1.0, reduction: str = "mean"
) -> torch.Tensor:
    """
    Returns `b CE(f, argmax f) + (1 - b) CE(f, w)` with a weight per row,
    `b = exp(CE(f, argmax f) / T) / (exp(CE(f, argmax f) / T) + exp(CE(f, argmax w) / T))`.

    The weight has no gradient. If student and supervisor predict the same class, b is one half. Otherwise b decreases
    with the confidence of the student. The loss supports any number of classes and needs no threshold over the batch.

    Args:
        logits, soft_labels, reduction: See [`cross_entropy_loss`].
        temperature (`float`, *optional*, defaults to `1.0`): Temperature T.

    Source: arXiv 2402.03749, adaptive confidence.
    """
    logits, soft_labels = _check(logits, soft_labels)
    own = cross_entropy(logits, logits.argmax(dim=-1), reduction="none")
    supervisor = cross_entropy(logits, soft_labels.argmax(dim=-1), reduction="none")
    weight = torch.stack([own, supervisor], dim=1).detach().div(temperature).softmax(dim=1)[:, 0]
    row_losses = weight * own + (1 - weight) * cross_entropy(logits, soft_labels, reduction="none")
    return _reduce(row_losses, reduction)


def _log_smoothed(soft_labels: torch.Tensor, smoothing: float) -> torch.Tensor:
    """Returns `log((1 - e) w + e / C)`, which is finite for hard labels, too."""
    if not 0 < smoothing < 1:
        raise ValueError(
            f"smoothing: got {smoothing}, expected a share above 0 and below 1. Pass a value in this range."
        )
    return torch.log((1 - smoothing) * soft_labels + smoothing / soft_labels.shape[1])


def reverse_kl_loss(
    logits: torch.Tensor, soft_labels: torch.Tensor, *, smoothing: float = 0.1, reduction: str = "mean"
) -> torch.Tensor:
    """
    Returns the reverse KL divergence, `sum_c f_c log(f_c / v_c)` with the smoothed weak label `v = (1 - e) w + e / C`.

    The loss of a row has its minimum 0 at `f = v`. [`cross_entropy_loss`] with the label v has its minimum at the same
    prediction, but another gradient. The loss is [`reverse_cross_entropy_loss`] minus the entropy of f.

    The gradient with respect to logit k is `f_k (log(f_k / v_k) - L)` with the loss L of the row. With two classes,
    the gradient with respect to logit 1 is `f_1 f_0 (log(f_1 / f_0) - log(v_1 / v_0))`. For cross-entropy, it is
    `f_1 - w_1`. The gradient vanishes for every sure prediction, also if the prediction contradicts the label. Wrong
    labels therefore change a sure student little, and a student that is sure of the wrong class learns slowly.

    Args:
        logits, soft_labels, reduction: See [`cross_entropy_loss`].
        smoothing (`float` in (0, 1), *optional*, defaults to `0.1`):
            Share e of the uniform distribution in the label. The loss of a hard label is infinite without it. The
            most probable class of a label does not change. With 0.1 and two classes, a hard label becomes 0.95. For a
            prediction of 0.5, its gradient is then 0.74, near the gradient 0.5 of cross-entropy. A learning rate of
            cross-entropy can therefore be used. With 0.05 the gradient would be 0.92.

    Source: arXiv 2502.11107. The smoothing is that of the code for arXiv 2505.24313 (Gengze/W2SG-Bregman, loss.py),
    where its default is 0. That code averages over rows and classes, which is half of this loss for two classes.
    """
    logits, soft_labels = _check(logits, soft_labels)
    log_probabilities = logits.log_softmax(dim=-1)
    log_ratios = log_probabilities - _log_smoothed(soft_labels, smoothing)
    return _reduce((log_probabilities.exp() * log_ratios).sum(dim=-1), reduction)


def reverse_cross_entropy_loss(
    logits: torch.Tensor, soft_labels: torch.Tensor, *, smoothing: float = 0.1, reduction: str = "mean"
) -> torch.Tensor:
    """
    Returns the reverse cross-entropy, `-sum_c f_c log v_c` with the smoothed weak label `v = (1 - e) w + e / C`.

    The loss is linear in f. Its minimum is the hard prediction of the label's most probable class m, not `f = w`. In
    this respect it is closer to [`confidence_loss`] than to [`cross_entropy_loss`]. The class is the supervisor's,
    while the confidence loss reinforces the student's own class.

    With two classes, the loss is `|log(v_1 / v_0)| (1 - f_m) - log v_m`. This is the absolute error for the hard label
    m, weighted by the log odds of the soft label. A label of 0.5 has the weight 0. With a hard label y and any C, the
    loss is `k (1 - f_y) - log(1 - e + e / C)` with `k = log(1 + C (1 - e) / e)`. The absolute error
    `sum_c |f_c - w_c|` is `2 (1 - f_y)`, so that the loss is `k / 2` times the absolute error, plus a constant. For
    C = 2 and e = 0.1, k is log 19 = 2.94 and the constant is 0.05.

    The gradient with respect to logit k is `-f_k (log v_k + L)` with the loss L of the row. With two classes, the
    gradient with respect to logit 1 is `-f_1 f_0 log(v_1 / v_0)`. It vanishes for every sure prediction, like the
    gradient of [`reverse_kl_loss`].

    Args:
        logits, soft_labels, reduction: See [`cross_entropy_loss`].
        smoothing (`float` in (0, 1), *optional*, defaults to `0.1`): Share e, see [`reverse_kl_loss`].

    Source: arXiv 2502.11107 and 2505.24313. The absolute error of hard labels is in arXiv 1908.06112, which replaces
    log 0 by a constant and does not smooth labels.
    """
    logits, soft_labels = _check(logits, soft_labels)
    return _reduce(-(logits.softmax(dim=-1) * _log_smoothed(soft_labels, smoothing)).sum(dim=-1), reduction)


def symmetric_loss(
    logits: torch.Tensor,
    soft_labels: torch.Tensor,
    *,
    alpha: float = 1.0,
    beta: float = 0.1,
    smoothing: float = 0.1,
    reduction: str = "mean",
) -> torch.Tensor:
    """
    Returns `alpha CE(f, w) + beta RCE(f, v)`: [`cross_entropy_loss`] plus [`reverse_cross_entropy_loss`].

    At the minimum of a row, the most probable class of the label has at least its probability in the label. Only the
    second term smooths the label.

    Args:
        logits, soft_labels, reduction: See [`cross_entropy_loss`].
        alpha (`float`, *optional*, defaults to `1.0`): Weight of the cross-entropy.
        beta (`float`, *optional*, defaults to `0.1`): Weight of the reverse cross-entropy.
        smoothing (`float` in (0, 1), *optional*, defaults to `0.1`): Share e, see [`reverse_kl_loss`].

    Source: arXiv 1908.06112. The weights 1 and 0.1 for weak labels are those of the code for arXiv 2505.24313
    (Gengze/W2SG-Bregman, loss.py).
    """
    forward = cross_entropy_loss(logits, soft_labels, reduction="none")
    reverse = reverse_cross_entropy_loss(logits, soft_labels, smoothing=smoothing, reduction="none")
    return _reduce(alpha * forward + beta * reverse, reduction)


def cace_loss(
    logits: torch.Tensor,
    soft_labels: torch.Tensor,
    *,
    threshold: float = 0.25,
    smoothing: float = 0.1,
    reduction: str = "mean",
) -> torch.Tensor:
    """
    Returns the confidence-adaptive cross-entropy: [`cross_entropy_loss`] on rows with a confident weak label, and
    [`reverse_cross_entropy_loss`] on other rows.

    A label is confident if `max_c w_c - 1 / C >= threshold`. With two classes, this is `|w_1 - 0.5| >= threshold`.

    Args:
        logits, soft_labels, reduction: See [`cross_entropy_loss`].
        threshold (`float` in [0, 1], *optional*, defaults to `0.25`):
            Smallest distance of a confident label from 1 / C. With 0.25 and two classes, labels with a largest
            probability below 0.75 have the reverse loss. With 0, all rows have cross-entropy. With 1, all rows have
            the reverse loss.
        smoothing (`float` in (0, 1), *optional*, defaults to `0.1`): Share e, see [`reverse_kl_loss`].

    Source: arXiv 2505.24313. The default of its code (Gengze/W2SG-Bregman) is 0.01, with which nearly all rows have
    cross-entropy. The generalization to C classes is ours.
    """
    forward = cross_entropy_loss(logits, soft_labels, reduction="none")
    reverse = reverse_cross_entropy_loss(logits, soft_labels, smoothing=smoothing, reduction="none")
    is_confident = soft_labels.float().amax(dim=-1) - 1 / soft_labels.shape[1] >= threshold
    return _reduce(torch.where(is_confident, forward, reverse), reduction)


def combined_labels(supervisor_labels: torch.Tensor, supervisor_weights: torch.Tensor) -> torch.Tensor:
    """
    Returns the labels of K supervisors, combined by their weights: `t = softmax(sum_k a_k log p_k)`.

    This is a weighted geometric mean, normalized over the classes. A sure supervisor has more influence than an unsure
    supervisor of the same weight.

    The loss `learned_supervisors` is the cross-entropy with these labels, whose weights are learned with the student.
    The trainers begin with equal weights. They keep them for a tenth of an epoch (`supervisor_warmup_epochs`). Then
    each optimizer step also makes a step of gradient descent on the weights, see [`supervisor_gradients`]. Weights
    below 1e-6 are set to 1e-6, and all weights are divided by their sum. The target of the student is constant.

    Args:
        supervisor_labels (`torch.Tensor` of shape `(B, K, C)`): Class probabilities p of each supervisor.
            Probabilities below 1e-6 count as 1e-6, so that hard labels have a logarithm.
        supervisor_weights (`torch.Tensor` of shape `(K,)`): Weights a, at least 0 with the sum 1.

    Returns:
        `torch.Tensor` of shape `(B, C)`, float32.

    Source: arXiv 2510.21332 (RAVEN). There, the first rows are those on which the supervisors agree. Here, the order
    of rows is that of the trainer: only the weights stay equal at first.
    """
    log_labels = _log_of_each(supervisor_labels, supervisor_weights)
    return (supervisor_weights.float()[:, None] * log_labels).sum(dim=1).softmax(dim=-1)


def supervisor_gradients(
    logits: torch.Tensor, supervisor_labels: torch.Tensor, supervisor_weights: torch.Tensor
) -> torch.Tensor:
    """
    Returns the gradient of each row's cross-entropy with the [`combined_labels`], with respect to the weights.

    With the combined label t and the prediction f, the gradient for supervisor k is
    `-sum_c t_c (log f_c - m) log p_kc`, with the mean `m = sum_c t_c log f_c`. This is minus the covariance, under t,
    of the logarithms of the prediction and of the supervisor's label. Gradient descent therefore increases the weights
    of supervisors that agree with the student, and most of all the weights of sure supervisors.

    Args:
        logits (`torch.Tensor` of shape `(B, C)`, any float dtype): Logits of the student. They get no gradient.
        supervisor_labels, supervisor_weights: See [`combined_labels`].

    Returns:
        `torch.Tensor` of shape `(B, K)`, float32.
    """
    target = combined_labels(supervisor_labels, supervisor_weights)
    log_probabilities = logits.detach().float().log_softmax(dim=-1)
    deviations = log_probabilities - (target * log_probabilities).sum(dim=-1, keepdim=True)
    return -((target * deviations)[:, None] * _log_of_each(supervisor_labels, supervisor_weights)).sum(dim=-1)


def _log_of_each(supervisor_labels: torch.Tensor, supervisor_weights: torch.Tensor) -> torch.Tensor:
    """Returns the logarithms of labels `(B, K, C)`, float32, after a check of both shapes."""
    if supervisor_labels.ndim != 3 or supervisor_weights.shape != supervisor_labels.shape[1:2]:
        raise ValueError(
            f"Got supervisor labels of shape {tuple(supervisor_labels.shape)} and supervisor weights of shape "
            f"{tuple(supervisor_weights.shape)}, expected (B, K, C) and (K,). Pass the probabilities of K supervisors "
            "for each row, and one weight per supervisor."
        )
    return supervisor_labels.float().clamp_min(_SMALLEST_PROBABILITY).log()
