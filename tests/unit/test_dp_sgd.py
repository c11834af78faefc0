"""DP-SGD: clipped sums against loops and Opacus, noise by its statistics, sampling, the audit."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.stats import chi2
from torch import nn
from torch.func import stack_module_state

from vplib import models, seeding
from vplib.attacks.inversion_gradient import lenet
from vplib.defenses.dp_sgd import audit as dp_audit
from vplib.defenses.dp_sgd import examples
from vplib.defenses.dp_sgd import private_training as dp_sgd
from vplib.privacy import accounting as dp_accounting

SHAPE, CLASSES = (1, 8, 8), 4


class Residual(nn.Module):
    """No Sequential, and a ReLU that overwrites what the other branch has read."""

    def __init__(self):
        super().__init__()
        self.first, self.relu, self.last = nn.Linear(64, 9), nn.ReLU(inplace=True), nn.Linear(9, 4)

    def forward(self, x):
        hidden = self.first(x.flatten(1))
        return self.last(2 * hidden + self.relu(hidden))


NETS = {
    "mlp": lambda: models.mlp(SHAPE, CLASSES, (9, 7)),
    "tanh": lambda: models.mlp(SHAPE, CLASSES, (9,), "tanh"),
    "no bias": lambda: nn.Sequential(nn.Flatten(), nn.Linear(64, CLASSES, bias=False)),
    "cnn": lambda: models.cnn(SHAPE, CLASSES, (3,), 8),
    "strides": lambda: lenet(SHAPE, CLASSES, "tanh", 4, spread=None),
    "dilated": lambda: nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=(2, 1), dilation=(2, 1), stride=(1, 2), bias=False),
        nn.ReLU(inplace=True),
        nn.AvgPool2d(2),
        nn.Flatten(),
        nn.Linear(32, CLASSES),
    ),
    "groups": lambda: nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.Conv2d(4, 4, 3, groups=2), nn.Flatten(), nn.Linear(64, CLASSES)
    ),
    "ghost conv": lambda: nn.Sequential(
        nn.Conv2d(1, 16, 3, stride=2),
        nn.ReLU(inplace=True),
        nn.Conv2d(16, 32, 3),
        nn.Flatten(),
        nn.Linear(32, 4),
    ),
    "relus in place": lambda: nn.Sequential(
        nn.Flatten(),
        nn.Linear(64, 9),
        nn.GELU(),
        nn.Linear(9, 7),
        nn.ReLU(inplace=True),
        nn.Linear(7, CLASSES),
    ),
    "residual": Residual,
    "group norm": lambda: nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.GroupNorm(2, 4), nn.Flatten(), nn.Linear(144, CLASSES)
    ),
}


def batch(num_models=1, num=5, seed=0):
    rng = torch.Generator().manual_seed(seed)
    images = torch.rand(num_models, num, *SHAPE, generator=rng)
    return images, torch.randint(CLASSES, (num_models, num), generator=rng)


def by_loop(net, images, labels, weights, clip):
    """One example after another, by torch's autograd."""
    total, norms = [torch.zeros_like(p) for p in net.parameters()], []
    for image, label, weight in zip(images, labels, weights, strict=True):
        loss = F.cross_entropy(net(image[None]), label[None])
        found = torch.autograd.grad(loss, list(net.parameters()))
        norms.append(torch.cat([g.flatten() for g in found]).norm())
        for t, g in zip(total, found, strict=True):
            t += weight * g * min(1.0, clip / norms[-1])
    return total, torch.stack(norms)


@pytest.mark.parametrize("name", NETS)
@pytest.mark.parametrize("clip", [0.05, 1.0, 100.0])
def test_clipped_sums_equal_a_loop_over_examples(name, clip):
    nets = [NETS[name]().double() for _ in range(3)]
    images, labels = batch(3)
    images, weights = images.double(), torch.tensor([[1.0, 1, 0, 1, 0]] * 3).double()
    state, _ = stack_module_state(nets)
    clips = torch.full((3,), clip).double()
    found, norms = dp_sgd.clipped_sums(NETS[name]())(state, images, labels, weights, clips)
    for k, net in enumerate(nets):
        expected, expected_norms = by_loop(net, images[k], labels[k], weights[k], clip)
        for (key, value), other in zip(found.items(), expected, strict=True):
            assert torch.allclose(value[k], other, atol=1e-6), key
        assert torch.allclose(norms[k], expected_norms, atol=1e-6)
        rows = examples.example_rows(examples.examples_of(net)(state, images, labels), k)
        assert torch.allclose(rows.norm(dim=1), expected_norms, atol=1e-6)
        scaled = rows * (weights[k] * (clip / expected_norms).clamp(max=1))[:, None]
        assert torch.allclose(scaled.sum(0), torch.cat([e.flatten() for e in expected]), atol=1e-6)


def test_clipped_sums_equal_opacus():
    from opacus import GradSampleModule
    from opacus.optimizers import DPOptimizer

    net = NETS["mlp"]()
    images, labels = batch()
    state, _ = stack_module_state([net])
    ones, clip = torch.ones(1, 5), torch.tensor([0.7])
    found, _ = dp_sgd.clipped_sums(NETS["mlp"]())(state, images, labels, ones, clip)
    wrapped = GradSampleModule(net)
    stepper = DPOptimizer(
        torch.optim.SGD(wrapped.parameters(), lr=1.0), noise_multiplier=0.0, max_grad_norm=0.7,
        expected_batch_size=1, loss_reduction="sum",
    )  # fmt: skip
    F.cross_entropy(wrapped(images[0]), labels[0], reduction="sum").backward()
    stepper.clip_and_accumulate()
    for value, parameter in zip(found.values(), wrapped.parameters(), strict=True):
        assert torch.allclose(value[0], parameter.summed_grad, atol=1e-6)


def trained(**changes):
    images, labels = batch(1, 40)
    settings = dict(sigma=0.0, sample_rate=0.5, num_steps=3, lr=0.1, seed=3) | changes
    subsets = settings.pop("subsets", torch.arange(40).expand(2, -1))
    images, labels = settings.pop("images", images[0]), settings.pop("labels", labels[0])
    return dp_sgd.train_private(NETS["mlp"], images, labels, subsets, **settings)


def test_one_full_batch_step_without_noise_is_the_mean_clipped_gradient():
    found = trained(sample_rate=1.0, num_steps=1, clip=0.3)
    images, labels = batch(1, 40)
    for k in range(2):
        net = seeding.initialized(NETS["mlp"], seeding.derive(3, k))
        expected, _ = by_loop(net, images[0], labels[0], torch.ones(40), 0.3)
        after = found.models.model(k).parameters()
        for before, g, p in zip(net.parameters(), expected, after, strict=True):
            assert torch.allclose(p, before - 0.1 * g / 40, atol=1e-6)


def test_an_infinite_clip_without_noise_is_plain_sgd():
    found = trained(sample_rate=1.0, num_steps=1, clip=math.inf)
    images, labels = batch(1, 40)
    net = seeding.initialized(NETS["mlp"], seeding.derive(3, 0))
    expected = torch.autograd.grad(F.cross_entropy(net(images[0]), labels[0]), net.parameters())
    for before, g, p in zip(
        net.parameters(), expected, found.models.model(0).parameters(), strict=True
    ):
        assert torch.allclose(p, before - 0.1 * g, atol=1e-6)


def test_one_step_equals_opacus():
    from opacus import PrivacyEngine

    images, labels = batch(1, 40)
    net = seeding.initialized(NETS["cnn"], seeding.derive(3, 0))
    loader = torch.utils.data.DataLoader(
        torch.utils.data.TensorDataset(images[0], labels[0]), batch_size=40
    )
    net, stepper, loader = PrivacyEngine().make_private(
        module=net, optimizer=torch.optim.SGD(net.parameters(), lr=0.1), data_loader=loader,
        noise_multiplier=0.0, max_grad_norm=0.3, poisson_sampling=False,
    )  # fmt: skip
    for x, y in loader:
        F.cross_entropy(net(x), y).backward()
        stepper.step()
    ours = dp_sgd.train_private(
        NETS["cnn"], images[0], labels[0], torch.arange(40)[None], sigma=0.0, sample_rate=1.0,
        num_steps=1, clip=0.3, lr=0.1, seed=3,
    )  # fmt: skip
    for p, peer in zip(ours.models.model(0).parameters(), net.parameters(), strict=True):
        assert torch.allclose(p, peer, atol=1e-6)


def test_noise_before_clipping_moves_the_mean_of_clipped_gradients_towards_the_mean():
    """Much of it, and the expectation of a clipped gradient is along the gradient itself."""
    found = {}
    for perturb in (0.0, 0.02, 50.0):
        steps = [
            trained(sample_rate=1.0, num_steps=1, clip=0.1, perturb=perturb, seed=k, lr=1.0)
            for k in range(2)
        ]
        found[perturb] = [s.models.state["1.weight"] for s in steps]
    assert torch.allclose(found[0.0][0], found[0.02][0], atol=0.1 * 2)  # a step of the clip norm
    assert not torch.equal(found[0.0][0], found[0.02][0])
    start = seeding.initialized(NETS["mlp"], seeding.derive(0, 0))
    moved = found[50.0][0][0] - start[1].weight
    assert 0 < moved.norm() < 0.1 / 40**0.5 * 2  # 40 random directions of norm 0.1, averaged


def test_the_noise_has_the_stated_standard_deviation():
    """Chi-squared on all parameters; a right code fails once in 10,000 runs (the seed is fixed)."""
    sigma, clip, lr = torch.tensor([[2.0], [0.5]]), torch.tensor([0.7, 3.0]), 0.1
    settings = dict(sample_rate=1.0, num_steps=1, clip=clip, lr=lr)
    noisy, clean = trained(sigma=sigma, **settings), trained(**settings)
    for k in range(2):
        pairs = zip(noisy.models.state.values(), clean.models.state.values(), strict=True)
        moved = torch.cat([(a[k] - b[k]).flatten() for a, b in pairs]).double()
        expected = lr * float(sigma[k, 0]) * float(clip[k]) / 40
        statistic, count = float((moved / expected).square().sum()), len(moved)
        assert chi2.ppf(5e-5, count) < statistic < chi2.ppf(1 - 5e-5, count)


def test_noise_differs_between_steps_models_and_seeds():
    first, other = trained(sigma=5.0), trained(sigma=5.0, seed=4)
    again = trained(sigma=5.0)
    for a, b, c in zip(*(r.models.state.values() for r in (first, again, other)), strict=True):
        assert torch.equal(a, b) and not torch.equal(a, c)
        assert not torch.equal(a[0], a[1])


def test_a_model_depends_on_its_seed_alone():
    both = trained(sigma=1.0)
    alone = trained(sigma=1.0, subsets=torch.arange(40)[None])
    for name, value in alone.models.state.items():
        assert torch.allclose(value[0], both.models.state[name][0], atol=1e-6)


def test_poisson_batches_are_independent_coins():
    """Counts and pairs of records as coins give them, within 4 standard errors."""
    rngs = [torch.Generator().manual_seed(k) for k in range(2)]
    drawn = torch.zeros(2, 2000, 50)
    rates = torch.tensor([0.1, 0.4])
    for step, (rows, weights) in enumerate(dp_sgd._poisson(50, rates, 2000, rngs)):
        drawn[:, step].scatter_add_(1, rows, weights)
    assert drawn.max() == 1  # no record twice in a batch
    for k, rate in enumerate(rates.tolist()):
        error = 4 * math.sqrt(rate * (1 - rate) / 2000)
        assert (drawn[k].mean(0) - rate).abs().max() < error * 1.1
        sizes = drawn[k].sum(1)
        assert sizes.var().item() == pytest.approx(50 * rate * (1 - rate), rel=0.15)


def test_reshuffled_batches_use_each_record_once_an_epoch():
    rngs = [torch.Generator().manual_seed(0)]
    rows = [r for r, _ in dp_sgd._reshuffled(20, torch.tensor([0.25]), 8, rngs)]
    for epoch in (rows[:4], rows[4:]):
        assert torch.cat(epoch, 1).sort().values.tolist() == [list(range(20))]
    assert not torch.equal(rows[0], rows[4])


def test_histories_and_statements():
    found = trained(sigma=torch.tensor([3.0, 3.0, 2.0]))
    assert found.histories == [[(3.0, 0.5, 2), (2.0, 0.5, 1)]] * 2
    expected = dp_accounting.epsilon(found.histories[0], 1e-5)
    assert found.statement(1, 1e-5).epsilon == expected
    shuffled = trained(sigma=torch.tensor([3.0, 3.0, 2.0]), sampling="reshuffle")
    assert shuffled.histories[0] == [3.0, 2.0]
    assert "reshuffled" in str(shuffled.statement(0, 1e-5))


@pytest.mark.parametrize(("num", "rate", "steps"), [(37, 0.1, 23), (40, 0.3, 10), (5, 0.01, 12)])
def test_a_history_counts_the_epochs_that_the_batches_have(num, rate, steps):
    """Sizes that do not divide: the most often drawn record is in one batch of each epoch."""
    rngs = [torch.Generator().manual_seed(0)]
    rows = [r for r, _ in dp_sgd._reshuffled(num, torch.tensor([rate]), steps, rngs)]
    uses = torch.cat(rows, 1)[0].bincount()
    per_epoch = dp_sgd._batches_an_epoch(num, rate)
    history = dp_sgd._history(torch.full((steps,), 2.0), rate, per_epoch)
    assert uses.max() <= len(history) == math.ceil(steps / per_epoch)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(sample_rate=1.2), "sample rate 1.2 is no probability"),
        (dict(sigma=-1.0), "sigma must be 0 or more, not -1"),
        (dict(sigma=math.inf), "sigma must be 0 or more, not inf"),
        (dict(sigma=math.nan), "sigma must be 0 or more, not nan"),
        (dict(perturb=-0.1), "perturb must be 0 or more, not -0.1"),
        (dict(perturb=math.inf), "perturb must be 0 or more, not inf"),
        (dict(perturb=torch.tensor([0.1, math.nan])), "perturb must be 0 or more, not nan"),
        (dict(images=torch.rand(40, *SHAPE).double()), "images must be float32, not torch.float64"),
        (dict(images=torch.ones(40, *SHAPE, dtype=torch.uint8)), "float32, not torch.uint8"),
        (dict(clip=math.nan), "clip norm must be positive"),
        (dict(clip=math.inf, sigma=1.0), "infinite clip norm needs infinite noise"),
        (dict(lr=math.inf), "must be positive"),
        (dict(optimizer="Adam"), "unknown optimizer 'Adam'; did you mean 'adam'"),
        (dict(subsets=torch.tensor([[0, 0, 0, 1]])), "holds a row twice.*give each row once"),
        (dict(subsets=torch.tensor([[0, 99]])), r"subsets must lie in 0\.\.39, .* in 0\.\.99"),
        (dict(subsets=torch.tensor([[0, -1]])), r"subsets must lie in 0\.\.39, .* in -1\.\.0"),
        (dict(subsets=torch.ones(1, 40, dtype=torch.bool)), "int64 .*, not torch.bool"),
        (dict(subsets=torch.arange(40)), r"subsets must be int64 \(models, n\)"),
        (dict(labels=torch.zeros(40, dtype=torch.int32)), "labels must be int64 .* torch.int32"),
        (dict(labels=torch.full((40,), 4)), r"labels must lie in 0\.\.3, these lie in 4\.\.4"),
        (dict(labels=torch.zeros(7, dtype=torch.int64)), r"subsets must lie in 0\.\.6"),
        (dict(clip=0.0), "clip norm must be positive"),
        (dict(num_steps=0), "must be positive"),
        (dict(lr=0.0), "must be positive"),
        (dict(sampling="shuffle"), "unknown sampling 'shuffle'; did you mean 'reshuffle'"),
        (
            dict(sampling="reshuffle", sample_rate=torch.tensor([0.1, 0.2])),
            "one sample rate for all",
        ),
    ],
)
def test_settings_that_cannot_be(changes, message):
    with pytest.raises(ValueError, match=message):
        trained(**changes)


def test_batch_norm_is_refused_before_training():
    net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(72, 4))
    with pytest.raises(ValueError, match="BatchNorm cannot support training"):
        dp_sgd.train_private(
            lambda: net, torch.rand(4, *SHAPE), torch.zeros(4, dtype=torch.int64),
            torch.arange(4)[None], sigma=1.0, sample_rate=0.5, num_steps=1,
        )  # fmt: skip


class Scaled(nn.Linear):
    """A layer with a buffer, which stacked weights would not hold."""

    def __init__(self):
        super().__init__(64, 64)
        self.register_buffer("scale", torch.ones(64))

    def forward(self, x):
        return self.scale * super().forward(x)


@pytest.mark.parametrize("layer", [nn.Dropout(), nn.Linear(64, 64).requires_grad_(False), Scaled()])
def test_dropout_buffers_and_frozen_weights_are_refused(layer):
    net = nn.Sequential(nn.Flatten(), layer, nn.Linear(64, CLASSES))
    with pytest.raises(ValueError, match="buffers, dropout or frozen weights cannot be stacked"):
        dp_sgd.check_trainable(net)


def test_a_record_given_twice_would_have_weighed_twice():
    """Why repeated rows are refused: three copies move the sum by three clip norms."""
    four = dp_accounting.epsilon([(1.0, 1.0, 1)], 1e-5)
    assert four == pytest.approx(4.75, abs=0.02)
    assert dp_accounting.epsilon([(1 / 3, 1.0, 1)], 1e-5) == pytest.approx(17.8, abs=0.1)


def test_divergence_is_an_error():
    with pytest.raises(FloatingPointError, match="lower lr"):
        trained(lr=1e38, num_steps=20)


# the audit


def test_p_value_by_hand():
    """Three of three by chance, epsilon 0: 1/8, plus 2 m delta max_i P[3-i <= B < 3] / i."""
    assert dp_audit.p_value(3, 3, 10, 0.0, 0.0) == pytest.approx(1 / 8)
    worst = max(3 / 8, 6 / 8 / 2, 7 / 8 / 3)
    assert dp_audit.p_value(3, 3, 10, 0.0, 0.01) == pytest.approx(1 / 8 + 0.2 * worst)
    assert dp_audit.p_value(0, 3, 10, 1.0, 0.01) == 1.0


def test_lower_bound_is_where_the_p_value_crosses():
    found = dp_audit.lower_bound(180, 200, 2000, 1e-6)
    assert dp_audit.p_value(180, 200, 2000, found, 1e-6) == pytest.approx(0.001, rel=0.02)
    assert dp_audit.lower_bound(100, 200, 2000, 1e-6) == 0
    assert found > dp_audit.lower_bound(180, 200, 2000, 1e-4)
    # all of 1,000 right shows no more than about 5 at 99.9 %
    assert 4.5 < dp_audit.lower_bound(1000, 1000, 1000, 1e-6) < 5.5


@pytest.mark.parametrize("epsilon", [0.5, 2.0])
@pytest.mark.parametrize("confidence", [0.9, 0.999])
def test_coverage_on_randomized_response(epsilon, confidence):
    """The mechanism flips each coin with chance 1 / (1 + e^epsilon): its epsilon is known, exactly.

    Of 4,000 audits it is refuted no more often than stated, by more than chance allows once in
    1,000 right codes; and at 0.9 often enough that the test is no idle one.
    """
    rng = np.random.default_rng(0)
    m, repeats = 400, 4000
    rights = rng.binomial(m, 1 / (1 + math.exp(-epsilon)), repeats)
    table = {v: dp_audit.p_value(int(v), m, m, epsilon, 0.0) for v in set(rights.tolist())}
    wrong = sum(table[v] <= 1 - confidence for v in rights.tolist())
    expected = (1 - confidence) * repeats
    assert wrong <= expected + 3.1 * math.sqrt(expected)
    if confidence == 0.9:
        assert wrong > 0.5 * expected


def test_coverage_on_a_gaussian_mechanism():
    """Each coin is released with noise; guesses as the audit makes them; 300 audits."""
    sigma, delta, m = 1.5, 1e-5, 500
    epsilon = dp_accounting.epsilon([(sigma, 1.0, 1)], delta, "prv")
    rng = torch.Generator().manual_seed(0)
    values, bounds = [], []
    for _ in range(300):
        coins = torch.rand(m, generator=rng) < 0.5
        scores = coins + sigma * torch.randn(m, generator=rng)
        right = dp_audit.correct_guesses(scores, coins, 100)
        values.append(dp_audit.p_value(right, 100, m, epsilon, delta))
        bounds.append(dp_audit.lower_bound(right, 100, m, delta))
    assert sum(v <= 0.05 for v in values) <= 15  # 5 %
    assert 0 < np.mean(bounds) and max(bounds) < epsilon


def test_guesses_are_the_extremes():
    scores = torch.tensor([5.0, 1.0, 4.0, 0.0, 3.0, 2.0])
    coins = torch.tensor([True, False, False, True, True, True])
    assert dp_audit.correct_guesses(scores, coins, 2) == 1  # 5.0 in: right; 0.0 out: wrong
    assert dp_audit.correct_guesses(scores, coins, 4) == 2
    for wrong in (0, 3, 8):
        with pytest.raises(ValueError, match="even number of guesses up to 6"):
            dp_audit.correct_guesses(scores, coins, wrong)


CANARIES = dict(sample_rate=1.0, num_steps=3, lr=0.1, clip=2.0)


def test_canaries_are_released_as_inserted():
    """Without noise and with each record in each batch, the clip norm appears in each step."""
    images, labels = batch(1, 6)
    coins = torch.tensor([[True, False] * 20, [False, True] * 20] * 9)  # more than train at once
    released = dp_audit.run_with_canaries(
        NETS["mlp"], images[0], labels[0], coins, sigma=0.0, **CANARIES
    )
    expected = 2.0 * coins.float()[:, None].expand(18, 3, 40)
    assert torch.allclose(released, expected, atol=1e-4)


def test_canaries_are_sampled_clipped_and_noised_as_records_are():
    """Each appears in a share of the steps, at the clip norm, in noise of sigma * clip."""
    images, labels = batch(1, 6)
    coins = torch.ones(1, 400, dtype=torch.bool)
    settings = CANARIES | dict(sample_rate=0.3, num_steps=60)
    for sigma in (0.0, 0.5):
        released = dp_audit.run_with_canaries(
            NETS["mlp"], images[0], labels[0], coins, sigma=sigma, **settings
        )
        assert released.mean().item() == pytest.approx(0.3 * 2.0, abs=0.03)
        spread = math.sqrt(0.3 * 0.7 * 4 + (sigma * 2.0) ** 2)
        assert released.std().item() == pytest.approx(spread, abs=0.04)


def test_canaries_leave_the_records_of_a_run_without_them_alone():
    images, labels = batch(1, 6)
    none = dp_audit.canary_rows(NETS["mlp"], 5, 0, "cpu")[0]
    out = dp_sgd.Canaries(none, torch.zeros(1, 5, dtype=torch.bool))
    runs = [
        dp_sgd.train_private(
            NETS["mlp"], images[0], labels[0], torch.arange(6)[None], sigma=0.0, sample_rate=1.0,
            num_steps=2, canaries=canaries,
        ).models.state
        for canaries in (None, out)
    ]  # fmt: skip
    for a, b in zip(*(run.values() for run in runs), strict=True):
        assert torch.allclose(a, b, atol=1e-6)


def test_the_likelihood_ratio_by_hand():
    """Two steps of one canary, sigma 2, clip 3: log of 1 - q + q exp((2 x - 1) / 8), x over 3."""
    released = torch.tensor([[[3.0], [-6.0]]])
    expected = sum(math.log(0.75 + 0.25 * math.exp((2 * x - 1) / 8)) for x in (1.0, -2.0))
    found = dp_audit.likelihood_ratio(released, 0.25, torch.tensor([2.0]), 3.0)
    assert found.item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("name", ["noise_scale", "clipped_sum", "gaussian"])
def test_the_audit_runs_the_code_that_ships(name, monkeypatch):
    """Whatever part of a step is broken, the canaries' releases change."""
    images, labels = batch(1, 6)
    coins = torch.ones(1, 20, dtype=torch.bool)
    run = lambda: dp_audit.run_with_canaries(  # noqa: E731
        NETS["mlp"], images[0], labels[0], coins, sigma=1.0, **CANARIES
    )
    before, shipped = run(), getattr(dp_sgd, name)

    def broken(*given):
        found = shipped(*given)
        return ({k: 2 * v for k, v in found[0].items()}, found[1]) if name[0] == "c" else 2 * found

    monkeypatch.setattr(dp_sgd, name, broken)
    assert (run() - before).abs().mean() > 0.5


def test_audit_errors():
    with pytest.raises(ValueError, match="correct <= guesses <= canaries"):
        dp_audit.lower_bound(5, 4, 10, 1e-5)
    with pytest.raises(ValueError, match="delta must be a probability, not 1.0"):
        dp_audit.lower_bound(3, 4, 10, 1.0)
    with pytest.raises(ValueError, match="9999 canaries but 576 weights in layer 1.weight"):
        dp_audit.canary_rows(NETS["mlp"], 9999, 0, "cpu")
