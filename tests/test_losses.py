"""Tests losses against values computed by hand and against their formulas."""

import math

import pytest
import torch

from w2s_hf import losses

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
}


def rows(name, logits=LOGITS, weak=WEAK, **kwargs):
    return ALL[name](logits, weak, reduction="none", **kwargs).tolist()


def test_every_loss_type_is_tested():
    assert {*ALL, "openai"} == set(losses.LOSS_TYPES)


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


@pytest.mark.parametrize("name", ALL)
def test_targets_carry_no_gradient(name):
    """The gradient is f - target for a constant target: its sum over classes is 0, and labels have no gradient."""
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
