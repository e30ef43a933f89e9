"""How often 95% intervals hold, in simulation: of beating, and of confirmations.

    python tests/benchmarks/intervals.py                    # P(A beats B): half a minute
    python tests/benchmarks/intervals.py --confirmations    # four minutes

P(A beats B): benchmarks are drawn with a probability of winning each, by a Beta distribution; runs
on each win by it. The interval is to hold the mean of the distribution.

Confirmations: two functions are trained with S seeds and tested on N examples. A training has an
example right where a normal variable is above zero: of the example, the seed (per function and
shared), the function on that example, and the rest. The interval is to hold the true difference of
the functions' accuracies, over all seeds and examples, in points.
"""

from __future__ import annotations

import argparse

import numpy as np
from scipy import stats

from bo_act.statistics import crossed, share_interval

KINDS = {"0.8, alike": (8, 2), "0.5": (2, 2), "0.95, alike": (20, 1), "0.77, far apart": (1, 0.3)}

# Deviations of a function's seed, of a function on an example, and of the rest, beside an example's
# own difficulty of 1.5 and a mean of 2 (an accuracy of nine tenths).
CAUSES = {
    "seeds": (0.15, 0.05, 0.3),
    "examples": (0.01, 0.6, 0.1),
    "both": (0.08, 0.3, 0.4),
    "neither": (0.02, 0.05, 0.7),
}


def bootstrap(wins: list[np.ndarray], resamples: int = 1_000) -> tuple[float, float]:
    """Percentile bootstrap over benchmarks and, within each, over runs."""
    generator = np.random.default_rng(0)
    drawn = generator.integers(len(wins), size=(resamples, len(wins)))
    means = np.empty(drawn.shape)
    for number, some in enumerate(wins):
        here = drawn == number
        again = generator.integers(len(some), size=(int(here.sum()), len(some)))
        means[here] = some[again].mean(axis=1)
    low, high = np.quantile(means.mean(axis=1), [0.025, 0.975])
    return float(low), float(high)


def coverage(shape: tuple[float, float], count: int, runs: int, draws: int) -> list[str]:
    """Return coverage and mean width of both intervals."""
    generator = np.random.default_rng(1)
    truth = shape[0] / sum(shape)
    held, width = np.zeros(2), np.zeros(2)
    for _ in range(draws):
        wins = [
            (generator.uniform(size=runs) < p).astype(float)
            for p in generator.beta(*shape, size=count)
        ]
        both = bootstrap(wins), share_interval([(some.sum(), runs) for some in wins])
        held += [low - 1e-9 <= truth <= high + 1e-9 for low, high in both]
        width += [high - low for low, high in both]
    return [f"{100 * h / draws:.0f}% ({w / draws:.2f})" for h, w in zip(held, width, strict=True)]


def pigeonhole(
    table: np.ndarray, generator: np.random.Generator, resamples: int = 400
) -> tuple[float, float]:
    """Percentile bootstrap over rows and, independently, over columns (Owen 2007)."""
    rows, columns = table.shape
    by_row = generator.multinomial(rows, np.full(rows, 1 / rows), size=resamples) / rows
    by_column = generator.multinomial(columns, np.full(columns, 1 / columns), size=resamples)
    means = np.einsum("br,br->b", by_row, by_column @ table.T) / columns
    low, high = np.quantile(means, [0.025, 0.975])
    return float(low), float(high)


def confirmed(
    cause: tuple[float, float, float], seeds: int, examples: int, generator: np.random.Generator
) -> tuple[np.ndarray, np.ndarray, float]:
    """Return what two functions have right, (S, N) each, and the true difference."""
    difficulty, mean, gain = 1.5, 2.0, 0.15
    seed, example, rest = cause
    easy = mean + difficulty * generator.normal(size=examples)
    easy = easy + seed * generator.normal(size=(seeds, 1))  # what a seed does to both
    right = [
        (
            easy
            + more
            + seed * generator.normal(size=(seeds, 1))
            + example * generator.normal(size=examples)
            + rest * generator.normal(size=(seeds, examples))
            > 0
        ).astype(np.float64)
        for more in (gain, 0.0)
    ]
    scale = np.sqrt(difficulty**2 + 2 * seed**2 + example**2 + rest**2)
    truth = float(stats.norm.cdf((mean + gain) / scale) - stats.norm.cdf(mean / scale))
    return right[0], right[1], truth


def confirmations(
    cause: tuple[float, float, float], seeds: int, examples: int, draws: int
) -> list[str]:
    """Return coverage and median width of the intervals: seeds, examples, pigeonhole, the wider."""
    generator = np.random.default_rng(2)
    held, widths = np.zeros(4), np.zeros((draws, 4))
    for draw in range(draws):
        one, other, truth = confirmed(cause, seeds, examples, generator)
        found = crossed(one, other)
        wider = found.both if found.wider == "both" else found.seeds
        ends = np.array(
            [
                found.seeds.interval,
                found.examples.interval,
                pigeonhole(one - other, generator),
                wider.interval,
            ]
        )
        held += (ends[:, 0] <= truth) & (truth <= ends[:, 1])
        widths[draw] = np.diff(ends)[:, 0]
    middle = 100 * np.median(widths, axis=0)
    return [f"{100 * h / draws:.0f}% ({w:.1f})" for h, w in zip(held, middle, strict=True)]


def main() -> None:
    """Simulate and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--draws", type=int, default=1_000)
    parser.add_argument("--runs", type=int, default=30)
    parser.add_argument("--confirmations", action="store_true")
    arguments = parser.parse_args()
    if arguments.confirmations:
        methods = "seeds alone | examples alone | pigeonhole | the wider"
        print(f"| differences are of | seeds | examples | {methods} |")
        print("|---" + "|---:" * 6 + "|")
        for name, cause in CAUSES.items():
            for seeds, examples in ((3, 359), (5, 359), (10, 359), (5, 2_000), (10, 2_000)):
                cells = confirmations(cause, seeds, examples, arguments.draws)
                print(f"| {name} | {seeds} | {examples} | {' | '.join(cells)} |", flush=True)
        return
    print("| mean probability | benchmarks | bootstrap: coverage (width) | t: coverage (width) |")
    print("|---|---:|---:|---:|")
    for name, shape in KINDS.items():
        for count in (2, 3, 4, 8):
            cells = coverage(shape, count, arguments.runs, arguments.draws)
            print(f"| {name} | {count} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
