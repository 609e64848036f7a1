"""Scaling law of accuracy with synthetic tokens: two curves, their intervals, and the tokens for more points.

log-linear: y = a + b log10(x). Mixture of exponentials: y = a - sum of c_i r_i**x, a <= 100, c_i >= 0, 0 < r_i < 1,
the form that the paper derives (section 6) and fits to QuALITY:
64.55 - 13.84 * 0.9989**x - 8.47 * 0.8961**x - 3.93 * 0.0546**x. x: millions of tokens; y: percent.
"""

from dataclasses import dataclass

import numpy as np
from scipy.optimize import brentq, least_squares, nnls

STARTS = 24  # of the search for the rates, which has local minima
MAX_PERCENT = 100.0
MAX_MTOKENS = 1e6  # millions of tokens: no extrapolation beyond


@dataclass(frozen=True)
class LogLinear:
    a: float
    b: float  # points per tenfold tokens

    def __call__(self, x: np.ndarray | float) -> np.ndarray | float:
        return self.a + self.b * np.log10(x)

    def __str__(self) -> str:
        return f"{self.a:.3g} {self.b:+.3g} log10(x)"


@dataclass(frozen=True)
class Mixture:
    """`a` is the asymptote; `c` and `r` are sorted by decreasing r."""

    a: float
    c: tuple[float, ...]
    r: tuple[float, ...]

    def __call__(self, x: np.ndarray | float) -> np.ndarray | float:
        return self.a - sum(c * np.power(r, x) for c, r in zip(self.c, self.r, strict=True))

    def __str__(self) -> str:
        return " - ".join([f"{self.a:.3g}", *(f"{c:.3g} · {r:.4g}^x" for c, r in zip(self.c, self.r, strict=True))])


def fit_log_linear(x: np.ndarray, y: np.ndarray, errors: np.ndarray | None = None) -> LogLinear:
    """Least squares, weighted by 1 / errors; x must be positive."""
    b, a = np.polyfit(np.log10(x), y, 1, w=None if errors is None else 1 / errors)
    return LogLinear(float(a), float(b))


def fit_mixture(x: np.ndarray, y: np.ndarray, terms=3, errors: np.ndarray | None = None, seed=0) -> Mixture:
    """Least squares over the rates; for given rates `a` and `c` >= 0 are the solution of a linear problem (variable
    projection; Golub and Pereyra 1973).

    Raises ValueError for fewer points than the curve has parameters, 2 * terms + 1.
    """
    if len(x) < 2 * terms + 1:
        raise ValueError(f"{terms} exponentials have {2 * terms + 1} parameters, and there are {len(x)} points")
    weights = np.ones(len(x)) if errors is None else 1 / errors

    def linear(log_rates: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        columns = np.column_stack([np.ones(len(x)), -np.exp(-np.outer(x, np.exp(log_rates)))])
        columns *= weights[:, None]
        found = nnls(columns, y * weights)[0]
        if found[0] > MAX_PERCENT:  # then the best asymptote is the highest possible one
            rest = y * weights - MAX_PERCENT * columns[:, 0]
            found = np.concatenate([[MAX_PERCENT], nnls(columns[:, 1:], rest)[0]])
        return found, columns @ found - y * weights

    rng = np.random.default_rng(seed)
    edges = np.log(0.1 / x.max()), np.log(10 / x[x > 0].min())
    fits = []
    for _ in range(STARTS):
        start = np.sort(rng.uniform(*edges, terms))
        tolerances = dict.fromkeys(("xtol", "ftol", "gtol"), 1e-14)
        fits.append(least_squares(lambda rates: linear(rates)[1], start, bounds=edges, **tolerances))
    best = min(fits, key=lambda fit: fit.cost).x
    order = np.argsort(best)
    a, *c = linear(best)[0]
    r = np.exp(-np.exp(best))
    return Mixture(float(a), tuple(float(c[i]) for i in order), tuple(float(r[i]) for i in order))


def more_tokens(curve: LogLinear | Mixture, now: float, points: float = 5) -> float | None:
    """Millions of tokens beyond `now` after which the curve is `points` higher; None where it never is."""
    target = curve(now) + points
    if min(curve(MAX_MTOKENS), MAX_PERCENT) < target:
        return None
    return float(brentq(lambda x: curve(x) - target, now, MAX_MTOKENS)) - now


def resampled(x: np.ndarray, y: np.ndarray, errors: np.ndarray, fit, number: int = 200, seed: int = 0) -> list:
    """Parametric bootstrap: `fit(x, y, errors)` on accuracies drawn with their standard errors. The spread of any
    quantity computed from these curves is its interval."""
    rng = np.random.default_rng(seed)
    return [fit(x, rng.normal(y, errors), errors) for _ in range(number)]


def interval(values: list[float]) -> list[float]:
    """The central 95%."""
    return [float(edge) for edge in np.quantile(values, [0.025, 0.975])]
