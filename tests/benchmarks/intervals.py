"""How often 95% intervals of the probability of beating hold, in simulation.

    python tests/benchmarks/intervals.py        # half a minute

Benchmarks are drawn with a probability of winning each, by a Beta distribution; runs on each win by
it. The interval is to hold the mean of the distribution.
"""

from __future__ import annotations

import argparse

import numpy as np

from bo_act.statistics import share_interval

KINDS = {"0.8, alike": (8, 2), "0.5": (2, 2), "0.95, alike": (20, 1), "0.77, far apart": (1, 0.3)}


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


def main() -> None:
    """Simulate and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--draws", type=int, default=1_000)
    parser.add_argument("--runs", type=int, default=30)
    arguments = parser.parse_args()
    print("| mean probability | benchmarks | bootstrap: coverage (width) | t: coverage (width) |")
    print("|---|---:|---:|---:|")
    for name, shape in KINDS.items():
        for count in (2, 3, 4, 8):
            cells = coverage(shape, count, arguments.runs, arguments.draws)
            print(f"| {name} | {count} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
