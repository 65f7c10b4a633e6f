"""Tests losses against values computed by hand and against their formulas."""

import math
from types import SimpleNamespace

import pytest
import torch
from helpers.training import arguments

from w2s_hf import losses
from w2s_hf.trainers.whole_step import WholeStepLoss

# Rows with P(class 1) = 0.2, 0.4, 0.6, 0.8: their logits are log odds.
P1 = torch.tensor([0.2, 0.4, 0.6, 0.8])
LOGITS = torch.stack([torch.zeros(4), torch.log(P1 / (1 - P1))], dim=1)
WEAK = torch.tensor([[0.9, 0.1], [0.3, 0.7], [0.5, 0.5], [0.1, 0.9]])
ln = math.log

ALL = {
    "xent": losses.cross_entropy_loss,
    "confidence": lambda *a, **k: losses.confidence_loss(*a, aux_weight=0.4, **k),
    "product": losses.product_loss,
    "entropy": lambda *a, **k: losses.entropy_loss(*a, aux_weight=0.4, **k),
    "window": losses.window_loss,
    "adaptive_confidence": losses.adaptive_confidence_loss,
    "reverse_kl": losses.reverse_kl_loss,
    "reverse_xent": losses.reverse_cross_entropy_loss,
    "symmetric": losses.symmetric_loss,
    "cace": losses.cace_loss,
}
REVERSE = ["reverse_kl", "reverse_xent", "symmetric", "cace"]


def rows(name, logits=LOGITS, weak=WEAK, **kwargs):
    return ALL[name](logits, weak, reduction="none", **kwargs).tolist()


def test_every_loss_type_is_tested():
    assert {*ALL, "openai", "learned_supervisors"} == set(losses.LOSS_TYPES)


def test_cross_entropy():
    # -0.9 ln 0.8 - 0.1 ln 0.2;  -0.3 ln 0.6 - 0.7 ln 0.4;  ...
    expected = [
        -0.9 * ln(0.8) - 0.1 * ln(0.2),
        -0.3 * ln(0.6) - 0.7 * ln(0.4),
        -0.5 * ln(0.4) - 0.5 * ln(0.6),
        -0.1 * ln(0.2) - 0.9 * ln(0.8),
    ]
    assert rows("xent") == pytest.approx(expected, abs=1e-6)
    assert losses.cross_entropy_loss(LOGITS, WEAK).item() == pytest.approx(sum(expected) / 4, abs=1e-6)


@pytest.mark.parametrize(("prior", "n_above"), [(0.5, 2), (0.25, 1), (0.75, 3)])
def test_threshold_leaves_the_prior_above_it(prior, n_above):
    assert (P1 > losses.confidence_threshold(P1, prior)).sum() == n_above


def test_threshold_is_the_quantile():
    values = torch.rand(33, generator=torch.Generator().manual_seed(0))
    for prior in (0.0, 0.1, 0.37, 0.5, 0.9, 1.0):
        expected = torch.quantile(values, 1 - prior)
        assert losses.confidence_threshold(values, prior).item() == pytest.approx(expected.item(), abs=1e-6)
    # Ten rows and a prior of 0.7: seven rows are above. Rows equal to the threshold are not above it.
    assert (torch.arange(10.0) > losses.confidence_threshold(torch.arange(10.0), 0.7)).sum() == 7
    assert (torch.ones(5) > losses.confidence_threshold(torch.ones(5), 0.5)).sum() == 0
    assert losses.confidence_threshold(P1.bfloat16(), 0.5).dtype == torch.float32
    with pytest.raises(ValueError, match="prior: got 1.2"):
        losses.confidence_threshold(P1, 1.2)


def test_confidence():
    # Mean weak label 0.55: the quantile at 0.45 lies at position 1.35 between 0.4 and 0.6, at 0.47. Rows 2 and 3
    # get class 1. Targets with a = 0.4: P(1) = 0.6 * 0.1, 0.6 * 0.7, 0.6 * 0.5 + 0.4, 0.6 * 0.9 + 0.4.
    targets = [0.06, 0.42, 0.70, 0.94]
    expected = [-t * ln(p) - (1 - t) * ln(1 - p) for t, p in zip(targets, P1.tolist(), strict=True)]
    assert rows("confidence") == pytest.approx(expected, abs=1e-6)
    # With the threshold of a whole step, all of these rows get the hard label 0.
    given = losses.confidence_loss(LOGITS, WEAK, aux_weight=1.0, threshold=0.9, reduction="none")
    assert given.tolist() == pytest.approx([-ln(0.8), -ln(0.6), -ln(0.4), -ln(0.2)], abs=1e-6)
    # The paper's rule for balanced data.
    half = losses.confidence_loss(LOGITS, WEAK, aux_weight=1.0, prior=0.5, reduction="none")
    assert half.tolist() == pytest.approx([-ln(0.8), -ln(0.6), -ln(0.6), -ln(0.8)], abs=1e-6)


def test_confidence_is_the_published_target():
    """openai/weak-to-strong selects class 0 by p0 >= quantile(p0, mean weak P(1)), which gives the same rows."""
    generator = torch.Generator().manual_seed(0)
    logits, weak = torch.randn(32, 2, generator=generator), torch.rand(32, 2, generator=generator).softmax(dim=1)
    p0 = logits.softmax(dim=1)[:, 0]
    negative = (p0 >= torch.quantile(p0, weak[:, 1].mean())).float()
    target = 0.6 * weak + 0.4 * torch.stack([negative, 1 - negative], dim=1)
    expected = -(target * logits.log_softmax(dim=1)).sum(dim=1).mean()
    assert losses.confidence_loss(logits, weak, aux_weight=0.4).item() == pytest.approx(expected.item(), abs=1e-6)


def test_confidence_divides_two_classes():
    with pytest.raises(ValueError, match="got 3 classes.*adaptive_confidence"):
        losses.confidence_loss(torch.zeros(2, 3), torch.full((2, 3), 1 / 3), aux_weight=0.5)


@pytest.mark.parametrize(("step_ratio", "weight"), [(0, 0), (0.1, 0.375), (0.2, 0.75), (0.5, 0.75), (1, 0.75)])
def test_linear_warmup(step_ratio, weight):
    assert losses.linear_warmup(step_ratio, 0.75, 0.2) == pytest.approx(weight)
    assert losses.linear_warmup(step_ratio, 0.75, 0.0) == 0.75


@pytest.mark.parametrize(("step_ratio", "weight"), [(0, 0), (0.05, 0.025), (0.1, 0.05), (0.1001, 0.5), (1, 0.5)])
def test_openai_warmup_jumps_tenfold(step_ratio, weight):
    assert losses.openai_warmup(step_ratio, 0.5, 0.1) == pytest.approx(weight)


def test_product():
    # Row 0: 0.8 * 0.9 against 0.2 * 0.1, normalised: 36/37 for class 0.  Row 2: the label is one half.
    assert rows("product")[0] == pytest.approx(-36 / 37 * ln(0.8) - 1 / 37 * ln(0.2), abs=1e-5)
    assert rows("product")[2] == pytest.approx(-0.4 * ln(0.4) - 0.6 * ln(0.6), abs=1e-5)
    assert rows("product", alpha=1.0, beta=0.0) == pytest.approx(rows("xent"), abs=1e-5)
    hard = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    saturated = torch.tensor([[-200.0, 200.0], [200.0, -200.0]], requires_grad=True)
    loss = losses.product_loss(saturated, hard)
    loss.backward()
    assert loss.isfinite() and saturated.grad.isfinite().all()


def test_entropy_and_its_gradient():
    entropies = [-p * ln(p) - (1 - p) * ln(1 - p) for p in P1.tolist()]
    expected = [0.6 * x + 0.4 * h for x, h in zip(rows("xent"), entropies, strict=True)]
    assert rows("entropy") == pytest.approx(expected, abs=1e-6)
    logits = LOGITS.clone().requires_grad_()
    losses.entropy_loss(logits, WEAK, aux_weight=1.0).backward()
    # d H / d logit of class 1 = -p (1 - p) log odds, over 4 rows: it pushes away from one half.
    expected = -P1 * (1 - P1) * torch.log(P1 / (1 - P1)) / 4
    torch.testing.assert_close(logits.grad[:, 1], expected, rtol=1e-5, atol=1e-6)


def test_window():
    # Largest probabilities 0.8, 0.6, 0.6, 0.8: below 0.65 are rows 1 and 2; the mean is over all four.
    everything = rows("xent")
    assert rows("window") == pytest.approx([0, everything[1], everything[2], 0], abs=1e-6)
    assert losses.window_loss(LOGITS, WEAK).item() == pytest.approx((everything[1] + everything[2]) / 4, abs=1e-6)
    assert rows("window", radius=0.5) == pytest.approx(everything, abs=1e-6)
    assert losses.window_loss(LOGITS, WEAK, radius=0.05).item() == 0


def test_adaptive_confidence():
    # Row 0: both predict class 0, so b = 1/2. Row 1: the student predicts 0 (0.6), the supervisor 1 (0.4):
    # b = (1/0.6) / (1/0.6 + 1/0.4) = 0.4.
    everything = rows("xent")
    expected = [0.5 * -ln(0.8) + 0.5 * everything[0], 0.4 * -ln(0.6) + 0.6 * everything[1]]
    assert rows("adaptive_confidence")[:2] == pytest.approx(expected, abs=1e-6)
    three = losses.adaptive_confidence_loss(torch.zeros(1, 3), torch.full((1, 3), 1 / 3))
    assert three.item() == pytest.approx(ln(3), abs=1e-6)


def test_reverse_cross_entropy():
    # Smoothed labels with e = 0.2: P(1) = 0.8 w + 0.1 = 0.18, 0.66, 0.5, 0.82.
    expected = [
        -0.8 * ln(0.82) - 0.2 * ln(0.18),
        -0.6 * ln(0.34) - 0.4 * ln(0.66),
        ln(2),  # a label of one half does not depend on the prediction
        -0.2 * ln(0.18) - 0.8 * ln(0.82),
    ]
    assert rows("reverse_xent", smoothing=0.2) == pytest.approx(expected, abs=1e-6)
    # Three classes, f = (1/2, 1/4, 1/4), w = (0, 0.4, 0.6), e = 0.3: the smoothed label is (0.1, 0.38, 0.52).
    three = torch.tensor([[ln(2), 0.0, 0.0]]), torch.tensor([[0.0, 0.4, 0.6]])
    expected = -ln(0.1) / 2 - ln(0.38) / 4 - ln(0.52) / 4
    assert rows("reverse_xent", *three, smoothing=0.3) == pytest.approx([expected], abs=1e-6)


def test_reverse_kl():
    # The same smoothed labels: 0.8 ln(0.8 / 0.82) + 0.2 ln(0.2 / 0.18);  0.6 ln(0.6 / 0.34) + 0.4 ln(0.4 / 0.66);  ...
    expected = [
        0.8 * ln(0.8 / 0.82) + 0.2 * ln(0.2 / 0.18),
        0.6 * ln(0.6 / 0.34) + 0.4 * ln(0.4 / 0.66),
        0.4 * ln(0.4 / 0.5) + 0.6 * ln(0.6 / 0.5),
        0.2 * ln(0.2 / 0.18) + 0.8 * ln(0.8 / 0.82),
    ]
    assert rows("reverse_kl", smoothing=0.2) == pytest.approx(expected, abs=1e-6)
    three = torch.tensor([[ln(2), 0.0, 0.0]]), torch.tensor([[0.0, 0.4, 0.6]])
    expected = ln(0.5 / 0.1) / 2 + ln(0.25 / 0.38) / 4 + ln(0.25 / 0.52) / 4
    assert rows("reverse_kl", *three, smoothing=0.3) == pytest.approx([expected], abs=1e-6)


def test_minimum_of_reverse_kl_is_the_smoothed_label():
    weak = torch.tensor([[0.7, 0.2, 0.1], [0.0, 1.0, 0.0]])
    # e = 0.1: 0.9 w + 1 / 30.
    logits = torch.log(0.9 * weak + 1 / 30).requires_grad_()
    loss = losses.reverse_kl_loss(logits, weak)
    loss.backward()
    assert loss.item() == pytest.approx(0, abs=1e-6) and logits.grad.abs().max() < 1e-6
    shifts = 0.1 * torch.randn(50, 2, 3, generator=torch.Generator().manual_seed(0))
    assert all(losses.reverse_kl_loss(logits + shift, weak) > 0 for shift in shifts)


@pytest.mark.parametrize("n_classes", [2, 3])
def test_reverse_cross_entropy_of_hard_labels_is_the_absolute_error(n_classes):
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(8, n_classes, generator=generator)
    hard = torch.eye(n_classes)[torch.arange(8) % n_classes]
    absolute_error = (logits.softmax(dim=1) - hard).abs().sum(dim=1)
    # Smoothed labels with e = 0.1: 0.95 and 0.05, with three classes 0.9 + 1/30 and 1/30. The ratios are 19 and 28.
    factor, constant = {2: (ln(19) / 2, -ln(0.95)), 3: (ln(28) / 2, -ln(28 / 30))}[n_classes]
    expected = factor * absolute_error + constant
    assert rows("reverse_xent", logits, hard) == pytest.approx(expected.tolist(), abs=1e-6)


def test_reverse_cross_entropy_is_the_absolute_error_of_the_hardened_label_weighted_by_log_odds():
    # The default e = 0.1: labels 0.9, 0.7, 0.9 become 0.86, 0.68, 0.86. The students give these classes the
    # probabilities 0.8, 0.4, 0.8.
    expected = [
        ln(0.86 / 0.14) * 0.2 - ln(0.86),
        ln(0.68 / 0.32) * 0.6 - ln(0.68),
        ln(0.86 / 0.14) * 0.2 - ln(0.86),
    ]
    reverse = rows("reverse_xent")
    assert [reverse[0], reverse[1], reverse[3]] == pytest.approx(expected, abs=1e-6)


def test_symmetric():
    forward, reverse = rows("xent"), rows("reverse_xent")
    expected = [f + 0.1 * r for f, r in zip(forward, reverse, strict=True)]
    assert rows("symmetric") == pytest.approx(expected, abs=1e-6)
    expected = [0.5 * f + 2 * r for f, r in zip(forward, rows("reverse_xent", smoothing=0.2), strict=True)]
    assert rows("symmetric", alpha=0.5, beta=2.0, smoothing=0.2) == pytest.approx(expected, abs=1e-6)
    # At f = w = 0.9 the first gradient is 0. The second is -0.9 * 0.1 * ln(0.86 / 0.14) * 0.1, towards the class.
    logits = torch.tensor([[0.0, ln(9)]], requires_grad=True)
    losses.symmetric_loss(logits, torch.tensor([[0.1, 0.9]])).backward()
    assert logits.grad[0, 1].item() == pytest.approx(-0.009 * ln(0.86 / 0.14), abs=1e-6)


def test_cace():
    # Largest probabilities 0.9, 0.7, 0.5, 0.9: less one half, rows 0 and 3 are at least 0.25.
    forward, reverse = rows("xent"), rows("reverse_xent")
    assert rows("cace") == pytest.approx([forward[0], reverse[1], reverse[2], forward[3]], abs=1e-6)
    assert rows("cace", threshold=0.0) == pytest.approx(forward, abs=1e-6)
    assert rows("cace", threshold=1.0, smoothing=0.2) == pytest.approx(rows("reverse_xent", smoothing=0.2), abs=1e-6)
    # At the threshold, a label is confident: 0.75 - 0.5 = 0.25.
    at = LOGITS[:1], torch.tensor([[0.75, 0.25]])
    assert rows("cace", *at) == pytest.approx(rows("xent", *at), abs=1e-6)
    # Three classes: 0.6 - 1/3 is at least 0.25, and 0.55 - 1/3 is not.
    three = torch.tensor([[0.0, 1.0, 2.0], [0.0, 1.0, 2.0]]), torch.tensor([[0.6, 0.2, 0.2], [0.55, 0.25, 0.2]])
    expected = [rows("xent", *three)[0], rows("reverse_xent", *three)[1]]
    assert rows("cace", *three) == pytest.approx(expected, abs=1e-6)


def plain(name, logits, weak):
    """The formulas in float64, written with products and sums over classes only."""
    f = logits.exp() / logits.exp().sum(dim=1, keepdim=True)
    smoothed = 0.9 * weak + 0.1 / weak.shape[1]
    forward, reverse = -(weak * f.log()).sum(dim=1), -(f * smoothed.log()).sum(dim=1)
    confident = weak.max(dim=1).values - 1 / weak.shape[1] >= 0.25
    row_losses = {
        "reverse_kl": (f * (f / smoothed).log()).sum(dim=1),
        "reverse_xent": reverse,
        "symmetric": forward + 0.1 * reverse,
        "cace": forward * confident + reverse * ~confident,
    }
    return row_losses[name]


@pytest.mark.parametrize("n_classes", [2, 3])
@pytest.mark.parametrize("name", REVERSE)
def test_gradients_of_reverse_losses_are_those_of_the_formulas(name, n_classes):
    generator = torch.Generator().manual_seed(0)
    logits = 2 * torch.randn(16, n_classes, generator=generator)
    weak = (2 * torch.randn(16, n_classes, generator=generator)).softmax(dim=1)
    ours, exact = logits.clone().requires_grad_(), logits.double().requires_grad_()
    ALL[name](ours, weak).backward()
    plain(name, exact, weak.double()).mean().backward()
    torch.testing.assert_close(ours.grad, exact.grad.float(), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(
    ("name", "gradient"),
    [
        # f_1 f_0 (ln(f_1 / f_0) - ln(v_1 / v_0)) and -f_1 f_0 ln(v_1 / v_0), with f_1 = 0.2 and v_1 = 0.14 in row 0.
        ("reverse_kl", [0.16 * (ln(0.2 / 0.8) - ln(0.14 / 0.86)), 0.24 * (ln(0.4 / 0.6) - ln(0.68 / 0.32))]),
        ("reverse_xent", [-0.16 * ln(0.14 / 0.86), -0.24 * ln(0.68 / 0.32)]),
    ],
)
def test_gradients_of_two_classes(name, gradient):
    logits = LOGITS.clone().requires_grad_()
    (4 * ALL[name](logits, WEAK)).backward()
    assert logits.grad[:2, 1].tolist() == pytest.approx(gradient, abs=1e-6)
    # A hard label and a prediction of one half: ln 19 / 4 = 0.74, as the docstring of reverse_kl_loss says.
    logits = torch.zeros(1, 2, requires_grad=True)
    ALL[name](logits, torch.tensor([[0.0, 1.0]])).backward()
    assert logits.grad[0, 1].item() == pytest.approx(-ln(19) / 4, abs=1e-6)


@pytest.mark.parametrize("size", [50.0, 1000.0])
@pytest.mark.parametrize("name", REVERSE)
def test_reverse_losses_are_finite_for_hard_labels_and_saturated_logits(name, size):
    logits = torch.tensor([[-size, size], [size, -size]], requires_grad=True)
    weak = torch.tensor([[1.0, 0.0], [1.0, 0.0]])
    row_losses = ALL[name](logits, weak, reduction="none")
    row_losses.sum().backward()
    assert row_losses.isfinite().all() and logits.grad.isfinite().all()
    # The first prediction is wrong: v = 0.05 for its class. The second is right: v = 0.95. Cross-entropy is 2 size, 0.
    wrong, right = -ln(0.05), -ln(0.95)
    expected = {"symmetric": [2 * size + 0.1 * wrong, 0.1 * right], "cace": [2 * size, 0.0]}.get(name, [wrong, right])
    assert row_losses.tolist() == pytest.approx(expected, rel=1e-6, abs=1e-6)
    # Only cross-entropy has a gradient for a sure and wrong prediction.
    assert logits.grad[0].abs().tolist() == pytest.approx([0.0 if "reverse" in name else 1.0] * 2, abs=1e-6)


@pytest.mark.parametrize("smoothing", [0.0, 1.0, float("nan")])
@pytest.mark.parametrize("name", REVERSE)
def test_hard_labels_without_smoothing_are_refused(name, smoothing):
    with pytest.raises(ValueError, match=f"smoothing: got {smoothing}, expected a share above 0 and below 1"):
        ALL[name](LOGITS, WEAK, smoothing=smoothing)


@pytest.mark.parametrize("name", ALL)
def test_targets_carry_no_gradient(name):
    """Adding a constant to all logits changes no loss: the gradient has the sum 0. Labels have no gradient."""
    logits = LOGITS.clone().requires_grad_()
    weak = WEAK.clone().requires_grad_()
    ALL[name](logits, weak.detach()).backward()
    torch.testing.assert_close(logits.grad.sum(dim=1), torch.zeros(4), atol=1e-6, rtol=0)
    if name in ("confidence", "product"):
        with torch.no_grad():
            target = logits.softmax(dim=1) - 4 * logits.grad
        expected = -(target * LOGITS.log_softmax(dim=1)).sum(dim=1)
        assert rows(name) == pytest.approx(expected.tolist(), abs=1e-5)


@pytest.mark.parametrize("name", ALL)
def test_reduction_dtype_and_shape(name):
    assert sum(rows(name)) / 4 == pytest.approx(ALL[name](LOGITS, WEAK).item(), abs=1e-6)
    loss = ALL[name](LOGITS.bfloat16(), WEAK)
    assert loss.dtype == torch.float32 and loss.item() == pytest.approx(ALL[name](LOGITS, WEAK).item(), abs=0.01)


@pytest.mark.parametrize(
    ("labels", "options", "message"),
    [
        (WEAK, {"reduction": "sum"}, "expected 'mean' or 'none'"),
        (WEAK[:, 1], {}, r"\(4, 2\) and soft labels of shape \(4,\)"),
    ],
    ids=["reduction", "shape"],
)
@pytest.mark.parametrize("name", ALL)
def test_other_reductions_and_shapes_are_refused(name, labels, options, message):
    with pytest.raises(ValueError, match=message):
        ALL[name](LOGITS, labels, **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"reverse_smoothing": 0.0}, "reverse_smoothing: got 0.0, expected a share above 0 and below 1"),
        ({"reverse_smoothing": 1.0}, "reverse_smoothing: got 1.0"),
        ({"symmetric_alpha": 0.0, "symmetric_beta": 0.0}, "Got symmetric_alpha=0.0 and symmetric_beta=0.0"),
        ({"symmetric_beta": -0.1}, "Got symmetric_alpha=1.0 and symmetric_beta=-0.1"),
        ({"cace_threshold": 1.1}, "cace_threshold: got 1.1, expected a value between 0 and 1"),
    ],
    ids=str,
)
def test_options_of_reverse_losses_have_ranges(options, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        arguments(tmp_path, **options)


def test_settings_of_a_loss_are_the_options_that_it_reads(tmp_path):
    args = arguments(tmp_path, reverse_smoothing=0.05, symmetric_beta=0.3, cace_threshold=0.2)
    smoothing = {"reverse_smoothing": 0.05}
    assert args.loss_settings("reverse_kl") == {"loss_type": "reverse_kl"} | smoothing
    assert args.loss_settings("reverse_xent") == {"loss_type": "reverse_xent"} | smoothing
    of_symmetric = {"loss_type": "symmetric", "symmetric_alpha": 1.0, "symmetric_beta": 0.3}
    assert args.loss_settings("symmetric") == of_symmetric | smoothing
    assert args.loss_settings("cace") == {"loss_type": "cace", "cace_threshold": 0.2} | smoothing
    # The settings of other losses in results are those of versions without the reverse losses.
    assert args.loss_settings("xent") == {"loss_type": "xent"}
    assert args.loss_settings("window") == {"loss_type": "window", "window_radius": 0.15}
    of_confidence = {"aux_coef": 0.5, "aux_warmup_ratio": 0.2, "aux_prior": None}
    assert args.loss_settings("confidence") == {"loss_type": "confidence"} | of_confidence


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("reverse_kl", {}),
        ("reverse_xent", {}),
        ("symmetric", {"alpha": 0.5, "beta": 2.0}),
        ("cace", {"threshold": 0.45}),
    ],
)
def test_trainers_pass_the_options_of_reverse_losses(name, options, tmp_path):
    prefixed = {f"{name}_{option}": value for option, value in options.items()}
    args = arguments(tmp_path, loss_type=name, reverse_smoothing=0.3, **prefixed)
    row_losses = WholeStepLoss._losses(SimpleNamespace(args=args, _loss=None), LOGITS, WEAK, ...)
    assert row_losses.tolist() == pytest.approx(rows(name, smoothing=0.3, **options), abs=1e-6)
