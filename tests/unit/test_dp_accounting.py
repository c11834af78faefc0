"""Accountants: the paper's setting by each, agreement with peers, identities, every refusal."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from opacus.accountants import PRVAccountant, RDPAccountant

from vplib.defenses.dp_sgd import bounds
from vplib.privacy import accounting as dp

BOUNDS = {"moments": bounds.moments_bound, "strong": bounds.strong_composition}
PAPER = {100: [(4.0, 0.01, 10_000)], 400: [(4.0, 0.01, 40_000)]}  # q = 0.01, sigma = 4, by epochs
GRID = [(0.9, 0.05, 200), (1.0, 0.01, 2000), (2.0, 0.1, 300), (4.0, 0.01, 10_000), (9.0, 1.0, 40)]


def epsilon(history, delta, accountant):
    return dp.epsilon(history, delta, BOUNDS.get(accountant, accountant))


@pytest.mark.parametrize(
    ("accountant", "after_100", "after_400", "error"),
    [
        ("prv", 0.96, 2.04, 0.006),
        ("rdp", 1.04, 2.21, 0.006),
        ("moments", 1.259, 2.576, 0.0006),
        ("strong", 9.355, 24.275, 0.0006),
    ],
)
def test_the_papers_setting(accountant, after_100, after_400, error):
    for epochs, expected in ((100, after_100), (400, after_400)):
        assert epsilon(PAPER[epochs], 1e-5, accountant) == pytest.approx(expected, abs=error)


def test_the_paper_prints_1_26_and_2_55_and_its_yardstick_9_34_and_24_22():
    """Abadi's figures within 1 % of ours: they stop at order 32 and round."""
    for accountant, paper in (("moments", (1.26, 2.55)), ("strong", (9.34, 24.22))):
        ours = [epsilon(PAPER[epochs], 1e-5, accountant) for epochs in (100, 400)]
        assert ours == pytest.approx(paper, rel=0.011)


def test_amplified_exactly_strong_composition_is_far_larger():
    """Linear amplification flatters the yardstick: done exactly it is three times as much."""
    found = []
    for epochs in (100, 400):
        sigma, q, steps = PAPER[epochs][0]
        single = math.sqrt(2 * math.log(1.25 * 2 * steps * q / 1e-5)) / sigma
        step = math.log1p(q * math.expm1(single))
        found.append(step * math.sqrt(2 * steps * math.log(2e5)) + steps * step * math.expm1(step))
        assert found[-1] > 2.5 * epsilon(PAPER[epochs], 1e-5, "strong")
    assert found == pytest.approx([26.78, 84.40], abs=0.01)


@pytest.mark.parametrize("phase", GRID)
@pytest.mark.parametrize("delta", [1e-6, 1e-4])
def test_agrees_with_opacus(phase, delta):
    """Our coarser orders cost at most one percent over Opacus' own."""
    for accountant, peer, allowed in (
        ("rdp", RDPAccountant(), 0.01),
        ("prv", PRVAccountant(), 0.0),
    ):
        peer.history = [phase]
        expected = peer.get_epsilon(delta)
        assert dp.epsilon([phase], delta, accountant) == pytest.approx(expected, rel=allowed + 1e-9)


@pytest.mark.parametrize("phase", GRID)
@pytest.mark.parametrize("delta", [1e-6, 1e-4])
def test_agrees_with_dp_accounting(phase, delta):
    peer = pytest.importorskip("dp_accounting", reason="Google's peer: the extra `test`")
    from dp_accounting.pld import PLDAccountant
    from dp_accounting.rdp import RdpAccountant

    sigma, rate, steps = phase
    step = peer.PoissonSampledDpEvent(rate, peer.GaussianDpEvent(sigma))
    event = peer.SelfComposedDpEvent(step, steps)
    renyi = RdpAccountant(dp.ORDERS).compose(event).get_epsilon(delta)
    assert dp.epsilon([phase], delta) == pytest.approx(
        renyi, rel=5e-3
    )  # fractional orders: Google's are looser
    loss = PLDAccountant(value_discretization_interval=1e-3).compose(event).get_epsilon(delta)
    assert dp.epsilon([phase], delta, "prv") == pytest.approx(loss, abs=0.03)


def test_one_gaussian_step_is_the_analytic_gaussian_mechanism():
    """delta = Phi(1/2s - e s) - exp(e) Phi(-1/2s - e s), Balle and Wang 2018, for the PRV."""
    from scipy.stats import norm

    sigma, delta = 3.0, 1e-5
    found = dp.epsilon([(sigma, 1.0, 1)], delta, "prv")

    def exact(e):
        return norm.cdf(0.5 / sigma - e * sigma) - math.exp(e) * norm.cdf(-0.5 / sigma - e * sigma)

    assert exact(found) <= delta <= exact(found - 0.025)  # an upper bound, within its mesh


@settings(max_examples=6, deadline=None)
@given(
    st.floats(1.0, 8.0), st.floats(0.002, 0.1), st.integers(1, 2000), st.sampled_from([1e-6, 1e-4])
)
def test_bounds_are_in_order_and_grow_with_steps(sigma, rate, steps, delta):
    history, twice = [(sigma, rate, steps)], [(sigma, rate, steps)] * 2
    tight, loose = (epsilon(history, delta, a) for a in ("rdp", "moments"))
    assert 0 < tight <= loose + 1e-9
    assert dp.epsilon(twice, delta) > tight
    assert dp.epsilon(twice, delta) == pytest.approx(dp.epsilon([(sigma, rate, 2 * steps)], delta))


def test_zcdp_by_hand():
    """sigma 10, 25 epochs: rho 1/8, and epsilon 1/8 + 2 sqrt(ln(1e5) / 8)."""
    found = bounds.zcdp_reshuffled([10.0] * 25, 1e-5)
    assert found.epsilon == pytest.approx(0.125 + 2 * math.sqrt(math.log(1e5) / 8))
    assert found.neighbour == bounds.BLANKED and "reshuffled" in found.sampling
    assert bounds.zcdp_reshuffled([10.0, 0.0], 1e-5).epsilon == math.inf


def test_reshuffling_costs_more_than_it_would_with_a_poisson_epsilon():
    """Why a Poisson epsilon must not be printed for shuffled batches."""
    assert bounds.zcdp_reshuffled([4.0] * 100, 1e-5).epsilon > 10 * dp.epsilon(PAPER[100], 1e-5)


@pytest.mark.parametrize("target", [0.1, 1.0])
def test_sigma_keeps_the_budget_and_little_less_does_not(target):
    sigma = dp.sigma_for(target, 1e-4, 0.064, 100)
    assert dp.epsilon([(sigma, 0.064, 100)], 1e-4) <= target
    assert dp.epsilon([(sigma * 0.96, 0.064, 100)], 1e-4) > target


def test_no_noise_is_no_privacy_and_no_step_spends_nothing():
    for accountant in (*dp.ACCOUNTANTS, *BOUNDS):
        assert epsilon([(0.0, 0.1, 3)], 1e-5, accountant) == math.inf
        assert epsilon([(0.0, 0.1, 0)], 1e-5, accountant) == 0


def test_a_statement_says_everything():
    text = str(dp.state(PAPER[100], 1e-5, note="tuning is not accounted for"))
    expected = "epsilon 1.04 at delta 1e-05", "Poisson, rate 0.01, 10000 steps", "RDP (Opacus)"
    for part in (*expected, dp.ADD_REMOVE, "tuning is not accounted for"):
        assert part in text
    assert "epsilon 0.51" in str(dp.Statement(0.5001, 1e-5, "s", "a"))  # never rounded down
    assert "epsilon inf" in str(dp.state([(0.0, 0.1, 3)], 1e-5))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(target=0), "epsilon must be positive"),
        (dict(target=-1.0), "epsilon must be positive"),
        (dict(target=math.nan), "epsilon must be positive"),
        (dict(delta=0), "between 0 and 1"),
        (dict(delta=0.001), "not below 1 / 1000 records"),
        (dict(sample_rate=1.5), "sample rate 1.5 is no probability"),
        (dict(sample_rate=0), "is no probability"),
    ],
)
def test_impossible_requests_are_refused(changes, message):
    request = dict(target=1.0, delta=1e-5, sample_rate=0.1, num_records=1000)
    dp.check_request(**request)
    with pytest.raises(ValueError, match=message):
        dp.check_request(**(request | changes))


def test_other_errors():
    with pytest.raises(ValueError, match="unknown accountant 'moments'; known: prv, rdp"):
        dp.epsilon(PAPER[100], 1e-5, "moments")
    with pytest.raises(ValueError, match="at least one phase"):
        dp.epsilon([], 1e-5)
    with pytest.raises(ValueError, match="must not be negative"):
        dp.epsilon([(-1.0, 0.1, 2)], 1e-5)
    with pytest.raises(ValueError, match="sample rate 2"):
        dp.epsilon([(1.0, 2, 2)], 1e-5)
    with pytest.raises(ValueError, match="give one phase"):
        epsilon([(1.0, 0.1, 2), (2.0, 0.1, 2)], 1e-5, "strong")
    with pytest.raises(ValueError, match="at least one step"):
        dp.sigma_for(1.0, 1e-5, 0.1, 0)
    with pytest.raises(ValueError, match="no noise up to 1e6 reaches epsilon 1e-07"):
        dp.sigma_for(1e-7, 1e-5, 1.0, 10)


def exact_gaussian(e, mu):
    """The delta of one Gaussian release at distance mu (Balle and Wang 2018)."""
    from scipy.stats import norm

    return norm.cdf(mu / 2 - e / mu) - math.exp(e) * norm.cdf(-mu / 2 - e / mu)


@pytest.mark.parametrize("history", [[(50.0, 0.001, 1)], [(1e6, 0.5, 3)]])
def test_epsilon_is_never_negative(history):
    """A delta of 1e-3 alone covers so much noise: epsilon is 0; of the PRV, within its mesh."""
    sigma, rate, steps = history[0]
    assert exact_gaussian(0.0, rate * steps**0.5 / sigma) < 1e-3
    assert dp.epsilon(history, 1e-3) == 0.0
    assert 0 <= dp.epsilon(history, 1e-3, "prv") <= 0.02


def test_an_infinite_budget_needs_no_noise_and_a_huge_one_ends():
    assert dp.sigma_for(math.inf, 1e-5, 0.1, 100) == 0.0
    sigma = dp.sigma_for(1e9, 1e-5, 0.1, 3)
    assert 0 < sigma < 1e-3 and dp.epsilon([(sigma, 0.1, 3)], 1e-5) <= 1e9


def test_prv_says_who_answers_what_it_cannot():
    """It would take minutes and gigabytes; the RDP accountant bounds the same run."""
    for sigma in (0.12, 0.01):
        with pytest.raises(ValueError, match="grid of .* points, more than 4e.06; ask .* 'rdp'"):
            dp.epsilon([(sigma, 0.01, 1000)], 1e-5, "prv")
        assert 500 < dp.epsilon([(sigma, 0.01, 1000)], 1e-5) < math.inf
