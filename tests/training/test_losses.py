"""Losses against their formulas in NumPy, float64, and against numerical gradients."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from coral_pytorch import losses as coral_library
from scipy import special, stats

from agelens.training import losses
from agelens.training.recipe import HeadsPart

AGES = np.arange(101)
N = 6
LOW = np.array([0, 3, 25, 60, 99, 100])
HIGH = np.array([2, 9, 25, 69, 100, 100])


def logits(columns: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, 1.5, (N, columns))


def softmax(values: np.ndarray) -> np.ndarray:
    softened: np.ndarray = special.softmax(values, axis=1)
    return softened


def sigmoid(values: np.ndarray) -> np.ndarray:
    share: np.ndarray = special.expit(values)
    return share


def gaussian(age: float, sigma: float) -> np.ndarray:
    density: np.ndarray = stats.norm.pdf(AGES, age, sigma)
    return np.asarray(density / density.sum())


def tensor(values: np.ndarray) -> torch.Tensor:
    return torch.tensor(values)


def gradient(loss: torch.Tensor, leaf: torch.Tensor) -> torch.Tensor:
    return torch.autograd.grad(loss, leaf)[0]


def dldl(z: np.ndarray, sigma: np.ndarray) -> np.ndarray:
    p = softmax(z)
    return np.array([stats.entropy(gaussian(LOW[i], sigma[i]), p[i]) for i in range(N)])


SIGMA = 1 + 0.04 * LOW


def test_label_distribution_is_the_divergence_from_the_discretised_normal() -> None:
    z = logits(101)

    found = losses.label_distribution(tensor(z), tensor(LOW), tensor(SIGMA))

    np.testing.assert_allclose(found.numpy(), dldl(z, SIGMA), rtol=1e-9)


def test_label_distribution_v2_adds_the_distance_of_the_expected_age() -> None:
    z = logits(101)
    expected = dldl(z, SIGMA) + 0.7 * np.abs(softmax(z) @ AGES - LOW)

    found = losses.label_distribution_v2(tensor(z), tensor(LOW), tensor(SIGMA), 0.7)

    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-9)


def test_mean_variance_is_the_sum_of_its_three_terms() -> None:
    z = logits(101)
    p = softmax(z)
    mean = p @ AGES
    variance = p @ AGES**2 - mean**2
    expected = -np.log(p[np.arange(N), LOW]) + 0.2 * (mean - LOW) ** 2 / 2 + 0.05 * variance

    found = losses.mean_variance(tensor(z), tensor(LOW), 0.2, 0.05)

    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-9)


def test_censored_likelihood_is_the_log_of_the_intervals_probability() -> None:
    z = logits(101)
    p = softmax(z)
    expected = [-np.log(p[i, LOW[i] : HIGH[i] + 1].sum()) for i in range(N)]

    found = losses.censored(tensor(z), tensor(LOW), tensor(HIGH))

    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-9)


def test_censored_likelihood_still_pulls_when_the_interval_has_no_probability() -> None:
    z = np.zeros((1, 101))
    z[0, 90] = 2000.0
    leaf = tensor(z).requires_grad_()

    loss = losses.censored(leaf, tensor(np.array([10])), tensor(np.array([19]))).sum()
    slope = gradient(loss, leaf)

    assert np.isfinite(loss.item())
    assert slope[0, 10:20].sum() == pytest.approx(-1.0)


def test_roughness_is_zero_on_a_straight_line_and_the_mean_square_elsewhere() -> None:
    z = logits(101)
    expected = (np.diff(z, 2, axis=1) ** 2).mean(axis=1)

    np.testing.assert_allclose(losses.roughness(tensor(z)).numpy(), expected, rtol=1e-12)
    line = np.tile(0.3 * AGES, (1, 1))
    assert losses.roughness(tensor(line)).item() == pytest.approx(0, abs=1e-20)


def test_absolute_error_is_zero_inside_the_interval() -> None:
    mean = np.array([1.0, 12.5, 24.0, 59.0, 99.5, 97.0])

    found = losses.absolute_error(tensor(mean), tensor(LOW), tensor(HIGH))

    np.testing.assert_allclose(found.numpy(), [0, 3.5, 1, 1, 0, 3])


def test_huber_is_quadratic_near_and_linear_far() -> None:
    mean = np.array([25.0, 27.0, 30.0, 45.0])
    age = np.full(4, 25)
    distance = mean - 25
    expected = np.where(distance <= 5, distance**2 / 10, distance - 2.5)

    found = losses.huber(tensor(mean), tensor(age), tensor(age), 5.0)

    np.testing.assert_allclose(found.numpy(), expected)


def test_normal_likelihood_is_that_of_scipy_without_its_constant() -> None:
    mean, log_variance = logits(1)[:, 0] * 20 + 40, logits(1, 1)[:, 0] + 3
    expected = -stats.norm.logpdf(LOW, mean, np.exp(log_variance / 2)) - 0.5 * np.log(2 * np.pi)

    found = losses.normal_nll(tensor(mean), tensor(log_variance), tensor(LOW))

    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-9)


def test_censored_normal_is_the_mass_between_the_intervals_ends() -> None:
    mean, log_variance = np.array([1, 12, 25, 64, 90, 101.0]), np.linspace(2, 5, N)
    std = np.exp(log_variance / 2)
    mass = stats.norm.cdf(HIGH + 0.5, mean, std) - stats.norm.cdf(LOW - 0.5, mean, std)

    found = losses.censored_normal(tensor(mean), tensor(log_variance), tensor(LOW), tensor(HIGH))

    np.testing.assert_allclose(found.numpy(), -np.log(mass), rtol=1e-7)


@pytest.mark.parametrize("mean", [-500.0, 600.0])
def test_censored_normal_stays_finite_far_from_the_interval(mean: float) -> None:
    leaf = torch.tensor([mean], requires_grad=True)
    spread = torch.tensor([1.0], requires_grad=True)

    loss = losses.censored_normal(leaf, spread, torch.tensor([20]), torch.tensor([29])).sum()
    slopes = [s.item() for s in torch.autograd.grad(loss, (leaf, spread))]

    assert np.isfinite([loss.item(), *slopes]).all()
    assert np.sign(slopes[0]) == np.sign(mean)


def test_ranges_cross_entropy_sums_the_ranges_that_a_label_touches() -> None:
    starts = (0, 3, 10, 20, 30, 60, 80)
    z = logits(len(starts))
    p = softmax(z)
    touched = [[0], [1], [3], [5], [6], [6]]
    expected = [-np.log(p[i, touched[i]].sum()) for i in range(N)]
    wide = [-np.log(p[0, 1:4].sum())]

    found = losses.ranges_cross_entropy(tensor(z), tensor(LOW), tensor(HIGH), starts)
    over_three = losses.ranges_cross_entropy(
        tensor(z[:1]), torch.tensor([5]), torch.tensor([25]), starts
    )

    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-9)
    np.testing.assert_allclose(over_three.numpy(), wide, rtol=1e-9)


def test_coral_is_that_of_the_authors_library_on_exact_ages() -> None:
    z = tensor(logits(100))
    levels = (tensor(LOW)[:, None] > torch.arange(100)).double()

    found = losses.coral(z, tensor(LOW), tensor(LOW))

    expected = coral_library.coral_loss(z, levels, reduction=None)
    np.testing.assert_allclose(found.numpy(), expected.numpy(), rtol=1e-9)


def test_coral_leaves_out_the_thresholds_inside_an_interval() -> None:
    z = logits(100)
    expected = []
    for i in range(N):
        over, under = sigmoid(z[i, : LOW[i]]), 1 - sigmoid(z[i, HIGH[i] :])
        expected.append(-np.log(over).sum() - np.log(under).sum())

    found = losses.coral(tensor(z), tensor(LOW), tensor(HIGH))

    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-9)


def test_corn_is_that_of_the_authors_library_on_exact_ages() -> None:
    z = tensor(logits(100))
    # The library divides by the number of steps that the faces of the batch take part in.
    steps = np.minimum(LOW + 1, 100).sum()

    found = losses.corn(z, tensor(LOW), tensor(LOW)).sum() / steps

    assert found.item() == pytest.approx(
        coral_library.corn_loss(z, tensor(LOW), 101).item(), rel=1e-6
    )


def test_corn_of_an_interval_is_the_log_of_its_probability() -> None:
    z = logits(100) + 3
    survival = np.concatenate(
        [np.ones((N, 1)), np.cumprod(sigmoid(z), axis=1), np.zeros((N, 1))], 1
    )
    mass = survival[np.arange(N), LOW] - survival[np.arange(N), HIGH + 1]

    found = losses.corn(tensor(z), tensor(LOW), tensor(HIGH))

    np.testing.assert_allclose(found.numpy(), -np.log(mass), rtol=1e-7)


def test_gender_cross_entropy_smooths_the_label() -> None:
    logit, female = np.array([-2.0, 0.3, 4.0]), np.array([1, 0, 1])
    wanted = np.array([0.95, 0.05, 0.95])
    expected = -(wanted * np.log(sigmoid(logit)) + (1 - wanted) * np.log(1 - sigmoid(logit)))

    found = losses.gender_cross_entropy(tensor(logit), tensor(female), 0.1)

    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-9)


def test_distillation_is_the_divergence_of_the_softened_distributions() -> None:
    student, teacher = logits(101), softmax(logits(101, 5))
    soft = softmax(np.log(teacher) / 3)
    own = softmax(np.log(softmax(student)) / 3)
    expected = [9 * stats.entropy(soft[i], own[i]) for i in range(N)]

    log_probabilities = torch.log_softmax(tensor(student), dim=1)
    found = losses.distillation(log_probabilities, tensor(teacher), 3.0)

    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-9)


def test_width_of_a_label_is_the_raters_spread_where_there_is_one() -> None:
    head = HeadsPart(distribution={"sigma_base": 2.0, "sigma_slope": 0.1}).distribution  # type: ignore[arg-type]
    assert head is not None
    std = torch.tensor([float("nan"), 5.0, 0.0])

    found = losses.label_sigma(torch.tensor([10, 10, 10]), std, head)

    assert found.tolist() == pytest.approx([3.0, 5.0, 0.3])


GRADIENTS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "label_distribution": lambda z: losses.label_distribution(z, tensor(LOW), tensor(SIGMA)),
    "label_distribution_v2": lambda z: losses.label_distribution_v2(z, tensor(LOW), tensor(SIGMA)),
    "mean_variance": lambda z: losses.mean_variance(z, tensor(LOW)),
    "censored": lambda z: losses.censored(z, tensor(LOW), tensor(HIGH)),
    "roughness": losses.roughness,
    "coral": lambda z: losses.coral(z[:, :100], tensor(LOW), tensor(HIGH)),
    "corn": lambda z: losses.corn(z[:, :100], tensor(LOW), tensor(HIGH)),
    "corn_exact": lambda z: losses.corn(z[:, :100], tensor(LOW), tensor(LOW)),
    "ranges": lambda z: losses.ranges_cross_entropy(
        z[:, :4], tensor(LOW), tensor(HIGH), (0, 20, 50, 80)
    ),
    "normal_nll": lambda z: losses.normal_nll(40 + 9 * z[:, 0], 3 + z[:, 1], tensor(LOW)),
    "censored_normal": lambda z: losses.censored_normal(
        40 + 9 * z[:, 0], 3 + z[:, 1], tensor(LOW), tensor(HIGH)
    ),
    "huber": lambda z: losses.huber(40 + 9 * z[:, 0], tensor(LOW), tensor(HIGH), 5.0),
    "absolute_error": lambda z: losses.absolute_error(40 + 9 * z[:, 0], tensor(LOW), tensor(HIGH)),
    "gender": lambda z: losses.gender_cross_entropy(z[:, 0], tensor(LOW) % 2, 0.05),
    "distillation": lambda z: losses.distillation(
        torch.log_softmax(z, dim=1), tensor(softmax(logits(101, 5))), 2.0
    ),
}


@pytest.mark.parametrize("name", GRADIENTS)
def test_gradient_is_the_numerical_one(name: str) -> None:
    assert torch.autograd.gradcheck(GRADIENTS[name], (tensor(logits(101)).requires_grad_(),))


# --- all tasks together ---------------------------------------------------------------------------


def mixed_targets(teachers: bool = False) -> losses.Targets:
    """An exact age, a range, no age, no gender, and nothing at all."""
    nan = float("nan")
    return losses.Targets(
        low=torch.tensor([30, 20, -1, 7, -1]),
        high=torch.tensor([30, 29, -1, 7, -1]),
        std=torch.tensor([nan, nan, nan, 2.0, nan]),
        female=torch.tensor([1, 0, 1, -1, -1]),
        teacher_age=torch.full((5, 101 if teachers else 0), 1 / 101),
        teacher_female=torch.tensor([0.5, nan, 0.9, 0.1, nan]) if teachers else torch.empty(0),
    )


HEADS = {
    "regression l1": {"regression": {"loss": "l1"}},
    "regression nll": {"regression": {"loss": "nll"}},
    "ranges": {"ranges": {}},
    "dldl_v2": {"distribution": {"loss": "dldl_v2"}},
    "mean variance": {"distribution": {"loss": "mean_variance"}},
    "coral": {"ordinal": {"loss": "coral"}},
    "corn and dldl": {"ordinal": {"loss": "corn"}, "distribution": {"loss": "dldl"}},
}
WIDTHS = {"regression": 2, "ranges": 9, "distribution": 101, "ordinal": 100, "gender": 1}


def outputs_of(heads: HeadsPart, rows: int = 5) -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    return {kind: torch.randn(rows, WIDTHS[kind]) for kind in (*heads.ages, "gender")}


@pytest.mark.parametrize("name", HEADS)
def test_missing_labels_count_for_nothing(name: str) -> None:
    heads = HeadsPart.model_validate(HEADS[name])
    objectives = losses.Objectives(heads)
    outputs = {k: v.requires_grad_() for k, v in outputs_of(heads).items()}

    sums = objectives.sums(outputs, mixed_targets())
    total = torch.stack([task.total for task in sums.values()]).sum()
    slopes = dict(zip(outputs, torch.autograd.grad(total, tuple(outputs.values())), strict=True))

    assert [int(sums[task].count) for task in outputs] == [3] * len(outputs)
    for kind in heads.ages:
        assert torch.isfinite(slopes[kind]).all()
        assert slopes[kind][[2, 4]].abs().sum() == 0
        assert (slopes[kind][[0, 3]].abs().sum(dim=1) > 0).all()
    assert slopes["gender"][[3, 4]].abs().sum() == 0


@pytest.mark.parametrize("name", HEADS)
def test_a_batch_is_the_sum_of_its_faces(name: str) -> None:
    heads = HeadsPart.model_validate(HEADS[name])
    objectives, outputs, targets = losses.Objectives(heads), outputs_of(heads), mixed_targets()

    together = objectives.sums(outputs, targets)
    alone = [
        objectives.sums(
            {k: v[i : i + 1] for k, v in outputs.items()},
            losses.Targets(*(t[i : i + 1] if len(t) else t for t in targets)),
        )
        for i in range(5)
    ]

    for task, whole in together.items():
        parts = sum(one[task].total.item() for one in alone)
        assert whole.total.item() == pytest.approx(parts, rel=1e-5)


@pytest.mark.parametrize("name", HEADS)
def test_a_face_of_weight_two_counts_like_two_faces(name: str) -> None:
    heads = HeadsPart.model_validate(HEADS[name])
    objectives, outputs, targets = losses.Objectives(heads), outputs_of(heads), mixed_targets()
    weight = torch.tensor([2.0, 1.0, 0.5, 0.0, 3.0])

    weighted = objectives.sums(outputs, targets._replace(weight=weight))

    for task, whole in weighted.items():
        expected = 0.0
        for i in range(5):
            own = losses.Targets(*(t[i : i + 1] if len(t) else t for t in targets))
            alone = objectives.sums({k: v[i : i + 1] for k, v in outputs.items()}, own)
            expected += float(weight[i]) * alone[task].total.item()
        assert whole.total.item() == pytest.approx(expected, rel=1e-5)
        assert whole.count == objectives.sums(outputs, targets)[task].count


def test_a_mean_only_loss_fits_the_spread_without_moving_the_mean() -> None:
    heads = HeadsPart.model_validate({"regression": {"loss": "l1"}})
    objectives = losses.Objectives(heads)
    output = torch.tensor([[33.0, 2.0]], requires_grad=True)
    targets = losses.Targets(*(t[:1] if len(t) else t for t in mixed_targets()))

    sums = objectives.sums({"regression": output, "gender": torch.zeros(1, 1)}, targets)
    slope = gradient(sums["regression"].total + sums["spread"].total, output)

    # d|m - 30| / dm = 1, and the likelihood's slope in the log-variance.
    expected = 0.5 * (1 - 9 * np.exp(-2))
    np.testing.assert_allclose(slope.numpy(), [[1.0, expected]], rtol=1e-5)


def test_teachers_count_for_faces_without_labels() -> None:
    heads = HeadsPart.model_validate({"distribution": {}})
    objectives = losses.Objectives(heads, distillation_weight=1.0)
    outputs = outputs_of(heads)
    outputs["log_probabilities"] = torch.log_softmax(outputs["distribution"], dim=1)

    counts = dict(zip(objectives.tasks, objectives.counts(mixed_targets(True)), strict=True))
    sums = objectives.sums(outputs, mixed_targets(True))

    assert int(counts["distillation_age"]) == 5
    assert int(counts["distillation_gender"]) == 3
    assert all(torch.isfinite(task.total) for task in sums.values())


def test_uncertainty_weights_follow_kendalls_formula() -> None:
    weights = losses.UncertaintyWeights(("regression", "gender"), ("regression",), limit=3.0)
    with torch.no_grad():
        weights.log_variances.copy_(torch.tensor([0.5, -1.0]))

    both = weights(torch.tensor([4.0, 0.7]), torch.ones(2))
    without_gender = weights(torch.tensor([4.0, 0.0]), torch.tensor([1.0, 0.0]))

    assert both.item() == pytest.approx(
        np.exp(-0.5) * 4 + 0.5 + np.exp(1.0) * 0.7 - 1.0 / 2, rel=1e-6
    )
    assert without_gender.item() == pytest.approx(np.exp(-0.5) * 4 + 0.5, rel=1e-6)


def test_learned_log_variance_settles_at_the_logarithm_of_twice_the_loss() -> None:
    weights = losses.UncertaintyWeights(("gender",), (), limit=3.0)
    optimizer = torch.optim.SGD(weights.parameters(), lr=0.5)
    for _ in range(300):
        optimizer.zero_grad()
        loss = weights(torch.tensor([0.4]), torch.ones(1))
        weights.log_variances.grad = gradient(loss, weights.log_variances)
        optimizer.step()
        weights.clamp()

    assert weights.log_variances.item() == pytest.approx(np.log(0.8), abs=1e-3)


def test_log_variances_start_where_their_gradient_is_zero() -> None:
    weights = losses.UncertaintyWeights(("regression", "gender", "none"), ("regression",), 4.0)
    now = torch.tensor([12.0, 0.7, 0.0])
    present = torch.tensor([1.0, 1.0, 0.0])

    weights.settle(now, present)
    slope = gradient(weights(now, present), weights.log_variances)

    np.testing.assert_allclose(slope.numpy(), np.zeros(3), atol=1e-6)
    assert weights.log_variances.tolist() == pytest.approx([np.log(12), np.log(1.4), 0], rel=1e-5)


def test_learned_log_variances_stay_within_their_limit() -> None:
    weights = losses.UncertaintyWeights(("a", "b"), (), limit=1.5)
    with torch.no_grad():
        weights.log_variances.copy_(torch.tensor([-9.0, 9.0]))

    weights.clamp()

    assert weights.log_variances.tolist() == [-1.5, 1.5]
