"""Checks the loss of a user, a function of logits, soft labels and step, and its results."""

import logging

import torch

from .. import losses
from ..config import LossArguments
from ..user_code import errors_with_lines

__all__ = ["check_row_loss", "row_losses_of", "try_row_loss"]

logger = logging.getLogger(__name__)


def check_row_loss(loss: losses.RowLoss | None, args: LossArguments) -> None:
    """Raises an error if the `loss` of a trainer is missing, is no function, or contradicts `args.loss_type`."""
    if loss is None:
        if args.loss_type == losses.OWN_LOSS:
            raise ValueError(
                f"loss_type: got {args.loss_type!r} and no loss, expected a function. Pass the function to the "
                "trainer as `loss`, such as `loss=my_method.loss_function`."
            )
        return
    if not callable(loss):
        raise TypeError(
            f"loss: got {loss!r}, expected a function of logits, soft labels and step. For a loss of the package, set "
            "args.loss_type."
        )
    if args.loss_type not in ("xent", losses.OWN_LOSS):
        raise ValueError(
            f"Got a loss function and loss_type={args.loss_type!r}, expected one of them. Leave loss_type out."
        )


def row_losses_of(
    loss: losses.RowLoss, logits: torch.Tensor, soft_labels: torch.Tensor, step: losses.Step
) -> torch.Tensor:
    """
    Calls the loss of a user, and checks its result.

    Raises:
        ValueError: The loss raises an error (the message names file and line). The result is not one finite loss per
            row, `(B,)`, or has no gradient.
    """
    what = f"loss {getattr(loss, '__name__', type(loss).__name__)}"
    with errors_with_lines(what, loss):
        row_losses = loss(logits, soft_labels, step)
    n_rows = len(logits)
    if not torch.is_tensor(row_losses) or row_losses.shape != (n_rows,):
        got = (
            f"shape {tuple(row_losses.shape)}" if torch.is_tensor(row_losses) else f"type {type(row_losses).__name__}"
        )
        raise ValueError(
            f"{what}: got a result of {got} for {n_rows} rows, expected the shape ({n_rows},). Return one loss per "
            "row, not the mean."
        )
    if torch.is_grad_enabled() and not row_losses.requires_grad:
        raise ValueError(f"{what}: got losses without gradient, expected a gradient. Do not detach the logits.")
    if not torch.isfinite(row_losses).all():
        row = int((~torch.isfinite(row_losses)).nonzero()[0])
        raise ValueError(
            f"{what}: got {row_losses[row].item()} for the logits {logits[row].tolist()} and the soft label "
            f"{soft_labels[row].tolist()}, expected a finite loss. Use log_softmax, and clamp probabilities."
        )
    return row_losses.float()


def try_row_loss(loss: losses.RowLoss, device: torch.device | None = None) -> None:
    """
    Calls the loss of a user on four random rows, to find its errors before anything is trained. Warns if the loss of a
    row depends on other rows.

    Args:
        loss ([`~w2s_hf.losses.RowLoss`]): The loss.
        device (`torch.device`, *optional*): The device of the training. Defaults to the CPU.

    Raises:
        ValueError: See [`row_losses_of`].
    """
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(4, 2, generator=generator).to(device).requires_grad_()
    soft_labels = torch.rand(4, 2, generator=generator).softmax(dim=-1).to(device)
    whole, again, part = (
        row_losses_of(loss, logits[:n], soft_labels[:n], losses.Step(0, 1000)).detach() for n in (4, 4, 2)
    )
    if torch.equal(whole, again) and not torch.allclose(whole[:2], part, rtol=1e-4, atol=1e-6):
        logger.warning(
            f"loss {getattr(loss, '__name__', type(loss).__name__)}: the losses of two rows change if other rows are "
            "in the batch. The rows of a step are divided into micro-batches, so the result depends on this division. "
            "Use only values of the row itself."
        )
