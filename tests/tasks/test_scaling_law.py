import numpy as np
import pytest

from tasks import scaling_law

PAPER = scaling_law.Mixture(64.55, (13.84, 8.47, 3.93), (0.9989, 0.8961, 0.0546))


def test_fit_recovers_the_papers_constants():
    x = np.array([0.0, 0.25, 0.5, 1, 2, 4, 8, 16, 32, 64, 128, 256, 455])
    fit = scaling_law.fit_mixture(x, PAPER(x))
    assert fit.a == pytest.approx(64.55, abs=0.05)
    assert fit.c == pytest.approx(PAPER.c, abs=0.05)
    assert fit.r == pytest.approx(PAPER.r, abs=1e-3)


def test_log_linear():
    x = np.array([1.0, 10, 100])
    fit = scaling_law.fit_log_linear(x, 40 + 5 * np.log10(x))
    assert (fit.a, fit.b) == pytest.approx((40, 5))
    assert scaling_law.more_tokens(fit, 100) == pytest.approx(900)


def test_tokens_for_five_more_points():
    more = scaling_law.more_tokens(PAPER, 455)
    assert PAPER(455 + more) == pytest.approx(PAPER(455) + 5)
    assert scaling_law.more_tokens(PAPER, 455, 9) is None  # the asymptote is 64.55


def test_intervals_cover_the_true_slope():
    rng = np.random.default_rng(0)
    x, errors = np.array([1.0, 3, 10, 30, 100, 300]), np.full(6, 0.8)
    hits = 0
    for number in range(100):
        y = rng.normal(40 + 5 * np.log10(x), errors)
        fits = scaling_law.resampled(x, y, errors, scaling_law.fit_log_linear, 200, number)
        low, high = scaling_law.interval([fit.b for fit in fits])
        hits += low < 5 < high
    assert 88 <= hits <= 100


def test_too_few_points():
    with pytest.raises(ValueError, match="7 parameters"):
        scaling_law.fit_mixture(np.arange(1.0, 6), np.arange(5.0))


def test_no_accuracy_above_100_percent():
    """Points of a real run, whose best fit without the bound has an asymptote of 650%."""
    x, y = np.array([0, 0.004378, 0.012442, 0.04032]), np.array([23.81, 28.57, 28.57, 82.14])
    fit = scaling_law.fit_mixture(x, y, 1, np.array([4.1, 8.7, 7.6, 2.9]))
    assert fit.a == 100 and fit(1e3) <= 100
    assert scaling_law.more_tokens(fit, 0.04032, 21) is None
    log_linear = scaling_law.fit_log_linear(x[1:], y[1:])
    assert scaling_law.more_tokens(log_linear, 0.04032, 5) and scaling_law.more_tokens(log_linear, 0.04032, 30) is None


def test_curves_are_shown_with_few_digits():
    assert str(PAPER) == "64.5 - 13.8 · 0.9989^x - 8.47 · 0.8961^x - 3.93 · 0.0546^x"
    assert str(scaling_law.LogLinear(174.9546, -67.42886)) == "175 -67.4 log10(x)"
