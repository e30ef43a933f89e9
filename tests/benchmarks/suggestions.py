"""Time and memory of one suggestion, fit included, beside BoTorch's and Optuna's own.

Run by ``make benchmark-suggestions``. Every case is a process of its own, so that its peak memory
is its own; the table stands in docs/results/speed.md, the figure beside it.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from bo_act.plot_style import COLUMN, colour_and_stroke, panels, save, styled

ROOT = Path(__file__).parents[2]
POOLS = (2_827, 50_000, 425_896)
OBSERVATIONS = (50, 100, 200, 500)
METHODS = ("default", "log_ei", "botorch", "tpe", "gpsampler")
BLOCKS = {"outputs": slice(0, 10), "fim": slice(10, 16)}
REPEATS = 3
# BoTorch's optimizer takes minutes for what is left out.
TOO_LONG = {("botorch", 425_896, 200), ("botorch", 425_896, 500)}


def search_problem(candidates: int, observations: int) -> tuple[np.ndarray, np.ndarray]:
    """Return points (candidates, 16) and noisy values of the first ones (observations,)."""
    generator = np.random.default_rng(0)
    points = generator.uniform(size=(candidates, 16))
    x = points[:observations]
    values = np.sin(3 * x[:, 0]) + x[:, 12] ** 2 + x[:, 3] * x[:, 11]
    return points, values + 0.1 * generator.normal(size=observations)


def ours(method: str, candidates: int, observations: int) -> Callable[[], object]:
    """Return what proposes once, as a study would."""
    from bo_act.search.embedding.embedding import Embedding
    from bo_act.search.method import METHODS as KNOWN
    from bo_act.search.observations import Observations
    from bo_act.search.searcher import Searcher

    points, values = search_problem(candidates, observations)
    embedding = Embedding(points, BLOCKS, np.ones(candidates, dtype=bool))
    spec = KNOWN[method]
    searcher = Searcher(surrogate=spec.surrogate, acquisition=spec.acquisition)
    seen = Observations(np.arange(observations), values)
    return lambda: searcher.propose(embedding, seen, number=observations)


def botorch(candidates: int, observations: int) -> Callable[[], object]:
    """Return what fits BoTorch's default model and optimizes LogEI over the choices."""
    import torch
    from botorch.acquisition.analytic import LogExpectedImprovement
    from botorch.fit import fit_gpytorch_mll
    from botorch.models import SingleTaskGP
    from botorch.optim import optimize_acqf_discrete
    from gpytorch.mlls import ExactMarginalLogLikelihood

    points, values = search_problem(candidates, observations)
    x, y = torch.from_numpy(points[:observations]), torch.from_numpy(values).unsqueeze(-1)
    choices = torch.from_numpy(points[observations:])

    def propose() -> object:
        model = SingleTaskGP(x, y)
        fit_gpytorch_mll(ExactMarginalLogLikelihood(model.likelihood, model))
        acquisition = LogExpectedImprovement(model, best_f=float(y.max()))
        return optimize_acqf_discrete(acquisition, q=1, choices=choices, max_batch_size=2_048)

    return propose


def optunas(method: str, observations: int) -> Callable[[], object]:
    """Return what asks one of Optuna's samplers for the slots of the Act-Bench space."""
    import optuna

    from bo_act.spaces.space import load_space

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    warnings.simplefilter("ignore")
    space = load_space("act_bench")
    sampler = (
        optuna.samplers.TPESampler(seed=0) if method == "tpe" else optuna.samplers.GPSampler(seed=0)
    )
    study = optuna.create_study(direction="maximize", sampler=sampler)
    generator = np.random.default_rng(0)
    for index in generator.permutation(len(space.catalogue))[:observations]:
        study.add_trial(
            optuna.trial.create_trial(
                params=space.catalogue.params(int(index)),
                distributions=dict(space.distributions),
                value=float(generator.uniform()),
            )
        )

    def propose() -> object:
        trial = study.ask()
        space.suggest_expression(trial)
        study.tell(trial, state=optuna.trial.TrialState.FAIL)
        return trial

    return propose


def measure(method: str, candidates: int, observations: int) -> dict[str, float]:
    """Return seconds of the fastest of three, and peak memory of this process in MB."""
    if method == "botorch":
        propose = botorch(candidates, observations)
    elif method in ("tpe", "gpsampler"):
        propose = optunas(method, observations)
    else:
        propose = ours(method, candidates, observations)
    seconds = []
    for _ in range(REPEATS):
        started = time.perf_counter()
        propose()
        seconds.append(time.perf_counter() - started)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {"seconds": min(seconds), "first": seconds[0], "megabytes": peak}


def in_own_process(method: str, candidates: int, observations: int) -> dict[str, float]:
    """Measure a case in a fresh process."""
    case = [str(candidates), str(observations)]
    command = [sys.executable, "-W", "ignore", __file__, "--case", method, *case]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return json.loads(done.stdout.splitlines()[-1])


@styled
def draw(found: dict[tuple[str, int, int], dict[str, float]]) -> Figure:
    """Draw seconds over observations, a panel for each pool."""
    figure, axes = panels(1, len(POOLS), width=2 * COLUMN)
    for axis, candidates in zip(axes, POOLS, strict=True):
        for place, method in enumerate(METHODS):
            line = [(n, found.get((method, candidates, n))) for n in OBSERVATIONS]
            line = [(n, cell["seconds"]) for n, cell in line if cell is not None]
            if line:
                axis.plot(
                    *zip(*line, strict=True), marker="o", label=method, **colour_and_stroke(place)
                )
        axis.set(xscale="log", yscale="log", xlabel="observations")
        axis.set_title(f"{candidates:,} candidates")
        axis.set_xticks(OBSERVATIONS, [str(n) for n in OBSERVATIONS])
        axis.minorticks_off()
        axis.sharey(axes[0])
    axes[0].set_ylabel("seconds a suggestion")
    axes[-1].legend(*axes[0].get_legend_handles_labels(), loc="lower right")
    return figure


def main() -> None:
    """Measure all cases and write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--case", nargs=3, metavar=("METHOD", "CANDIDATES", "OBSERVATIONS"))
    parser.add_argument("--figure", type=Path, default=ROOT / "docs/figures/search_speed.svg")
    options = parser.parse_args()
    if options.case:
        method, candidates, observations = options.case
        print(json.dumps(measure(method, int(candidates), int(observations))))
        return
    from standing import put  # what it imports is no part of a case's memory

    found = {}
    lines = [
        f"{len(os.sched_getaffinity(0))} cores; seconds (peak MB).\n",
        "| candidates | observations | " + " | ".join(f"`{m}`" for m in METHODS) + " |",
        "|---:" * (len(METHODS) + 2) + "|",
    ]
    for candidates in POOLS:
        for observations in OBSERVATIONS:
            cells = []
            for method in METHODS:
                slots = method in ("tpe", "gpsampler")
                if (method, candidates, observations) in TOO_LONG or (
                    slots and candidates != POOLS[0]
                ):
                    cells.append("")
                    continue
                cell = in_own_process(method, candidates, observations)
                found[method, candidates, observations] = cell
                cells.append(f"{cell['seconds']:.2g} ({cell['megabytes']:.0f})")
            lines.append(f"| {candidates:,} | {observations} | {' | '.join(cells)} |")
            print(lines[-1], flush=True)
    put(ROOT / "docs" / "results" / "speed.md", "suggestions", "\n".join(lines))
    save(draw(found), options.figure)


if __name__ == "__main__":
    main()
