"""Coverage of 95% intervals of accuracies: the share of simulated evaluations whose interval contains the truth.

    python benchmarks/bench_intervals.py
    python benchmarks/bench_intervals.py --articles 5 --accuracies 0.7 --correlations 0.1

Compares tasks/intervals.py with intervals that were not chosen, for accuracies and for paired differences of 0, 0.15
and 0.3. An article's accuracy has a beta distribution, such that two of its answers have the given correlation;
articles have 17 questions each, 7 each, or 2 to 32.
"""

import argparse
import itertools
import warnings

import numpy as np

from reports.tables import print_table
from tasks.intervals import mean_interval
from utils.cli import fraction, make_parser, positive_int, print_result, seed_number
from utils.errors import run

RESAMPLES = 999
SIZES = {"17": (17, 17), "7": (7, 7), "2-32": (2, 32)}  # questions per article
GAINS = (0.0, 0.15, 0.3)
SAME = 0.7  # of the questions two models share the random number that decides whether they know the answer


def parse_arguments() -> argparse.Namespace:
    parser = make_parser(__doc__)
    add = parser.add_argument
    add("--articles", nargs="+", type=positive_int, default=[8, 12, 30, 130], help="number of each row")
    add("--accuracies", nargs="+", type=fraction, default=[0.25, 0.5, 0.56, 0.8, 0.95], help="of each row")
    add("--correlations", nargs="+", type=fraction, default=[0, 0.1], help="of two answers about one article")
    add("--simulations", type=positive_int, default=1000, help="of each row")
    add("--seed", type=seed_number, default=0, help="of the simulated answers")
    return parser.parse_args()


def main() -> None:
    args = parse_arguments()
    warnings.simplefilter("ignore")  # of scipy: BCa is undefined where all articles are alike
    rows, ours = [], []
    cells = itertools.product(("accuracy", "difference"), args.correlations, SIZES, args.articles)
    for kind, correlation, sizes, articles in cells:
        for truth in args.accuracies if kind == "accuracy" else GAINS:
            rng = np.random.default_rng(args.seed)
            samples = [simulate(rng, kind, articles, SIZES[sizes], truth, correlation) for _ in range(args.simulations)]
            target = truth if kind == "accuracy" else (1 + truth) / 2
            shares = {name: coverage(method, samples, target) for name, method in METHODS.items()}
            rows.append((kind, correlation, sizes, articles, truth, *(f"{share:.1%}" for share in shares.values())))
            ours.append(shares["Wilson, t"])
    print_table([("", "correlation", "questions", "articles", "truth", *METHODS), *rows])
    print_result({"lowest": min(ours), "highest": max(ours)}, f"Wilson, t: {min(ours):.1%} to {max(ours):.1%}")


def simulate(rng, kind: str, articles: int, sizes: tuple[int, int], truth: float, correlation: float):
    """(values in 0..1, article of each value) of one evaluation, or of the differences of two, mapped to 0..1."""
    groups = np.repeat(np.arange(articles), rng.integers(sizes[0], sizes[1] + 1, articles))
    chance = rng.random(len(groups))
    if kind == "accuracy":
        return (chance < known_share(rng, truth, correlation, articles)[groups]).astype(float), groups
    one = chance < known_share(rng, 0.5, correlation, articles)[groups]
    again = np.where(rng.random(len(groups)) < SAME, chance, rng.random(len(groups)))
    other = again < known_share(rng, 0.5 + truth, correlation, articles)[groups]
    return (1.0 + other - one) / 2, groups


def known_share(rng, mean: float, correlation: float, articles: int) -> np.ndarray:
    """(articles,): each article's accuracy."""
    if not correlation:
        return np.full(articles, mean)
    strength = 1 / correlation - 1
    return rng.beta(mean * strength, (1 - mean) * strength, articles)


def coverage(method, samples: list, truth: float) -> float:
    edges = [method(values, groups) for values, groups in samples]
    return float(np.mean([low - 1e-9 <= truth <= high + 1e-9 for low, high in edges]))


def cluster_sums(values: np.ndarray, groups: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return np.bincount(groups, weights=values), np.bincount(groups)


def ratio(sums: np.ndarray, sizes: np.ndarray, axis: int = -1) -> np.ndarray:
    return sums.sum(axis) / sizes.sum(axis)


def standard_error(sums: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """Linearised standard error of the ratio, over the last axis."""
    count = sums.shape[-1]
    residuals = sums - ratio(sums, sizes)[..., None] * sizes
    return np.sqrt(count / (count - 1) * (residuals**2).sum(-1)) / sizes.sum(-1)


def percentile(values: np.ndarray, groups: np.ndarray) -> tuple[float, float]:
    sums, sizes, drawn = resample(values, groups)
    return tuple(np.quantile(ratio(sums[drawn], sizes[drawn]), [0.025, 0.975]))


def studentised(values: np.ndarray, groups: np.ndarray) -> tuple[float, float]:
    sums, sizes, drawn = resample(values, groups)
    mean, error = ratio(sums, sizes), standard_error(sums, sizes)
    errors = standard_error(sums[drawn], sizes[drawn])
    t = (ratio(sums[drawn], sizes[drawn]) - mean)[errors > 0] / errors[errors > 0]
    low, high = np.quantile(t, [0.025, 0.975]) if len(t) else (0, 0)
    return mean - high * error, mean - low * error


def resample(values: np.ndarray, groups: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    sums, sizes = cluster_sums(values, groups)
    return sums, sizes, np.random.default_rng(0).integers(len(sizes), size=(RESAMPLES, len(sizes)))


def bca(values: np.ndarray, groups: np.ndarray) -> tuple[float, float]:
    from scipy import stats

    data = cluster_sums(values, groups)
    settings = {"paired": True, "vectorized": True, "method": "BCa", "n_resamples": RESAMPLES, "rng": 0}
    interval = stats.bootstrap(data, ratio, **settings).confidence_interval
    return interval.low, interval.high


def t_interval(values: np.ndarray, groups: np.ndarray) -> tuple[float, float]:
    sums, sizes = cluster_sums(values, groups)
    half = t_quantile(sizes) * standard_error(sums, sizes)
    return ratio(sums, sizes) - half, ratio(sums, sizes) + half


def t_logit(values: np.ndarray, groups: np.ndarray) -> tuple[float, float]:
    sums, sizes = cluster_sums(values, groups)
    mean, error = ratio(sums, sizes), standard_error(sums, sizes)
    if not 0 < mean < 1:
        return mean, mean
    half = t_quantile(sizes) * error / (mean * (1 - mean))
    low, high = np.log(mean / (1 - mean)) + np.array([-half, half])
    return 1 / (1 + np.exp(-low)), 1 / (1 + np.exp(-high))


def t_quantile(sizes: np.ndarray) -> float:
    from scipy import special

    return special.stdtrit(len(sizes) - 1, 0.975)


METHODS = {
    "percentile": percentile,
    "BCa": bca,
    "studentised": studentised,
    "t": t_interval,
    "t, logit": t_logit,
    "Wilson, t": mean_interval,
}

if __name__ == "__main__":
    run(main)
