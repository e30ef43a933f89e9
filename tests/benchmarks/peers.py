"""Ax, SMAC3 and HEBO on the slots of a space, as their users run them, beside bo-act's default.

    pip install ax-platform smac disjoint-set GPy pymoo && pip install --no-deps HEBO
    python tests/benchmarks/peers.py --seeds 10 --out runs/peers

Each package gets the slots as unordered choices, begins with the functions that every method
begins with, and keeps its own defaults. All are methods of a comparison as well:
``bo-act compare --method default --method tests/benchmarks/peers.py:ax ...``.
"""

from __future__ import annotations

import argparse
import logging
import tempfile
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import optuna
from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState

import bo_act

METHODS = ("default", "ax", "smac", "hebo", "tpe", "gpsampler", "random")


class Peer(Protocol):
    """An optimizer of another package, by asking and telling; it minimizes."""

    def ask(self) -> dict[str, str]:
        """Return a choice for every slot."""

    def tell(self, params: dict[str, Any], value: float) -> None:
        """Take in the value of some choices, asked for or not."""


class PeerSampler(BaseSampler):
    """Lets a peer fill the slots of each trial."""

    def __init__(self, space: bo_act.Space, peer: Peer) -> None:
        self.space, self.peer = space, peer

    def infer_relative_search_space(
        self, study: Study, trial: FrozenTrial
    ) -> dict[str, BaseDistribution]:
        return dict(self.space.distributions)

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        asked = "fixed_params" not in trial.system_attrs and search_space
        return self.peer.ask() if asked else {}

    def sample_independent(
        self, study: Study, trial: FrozenTrial, name: str, distribution: BaseDistribution
    ) -> Any:
        raise NotImplementedError(name)

    def after_trial(
        self, study: Study, trial: FrozenTrial, state: TrialState, values: Sequence[float] | None
    ) -> None:
        if values:
            sign = -1.0 if study.direction == optuna.study.StudyDirection.MAXIMIZE else 1.0
            self.peer.tell(trial.params, sign * values[0])


class Ax:
    """Ax's client, with its default generation strategy."""

    def __init__(self, space: bo_act.Space, seed: int) -> None:
        from ax.api.client import Client
        from ax.api.configs import ChoiceParameterConfig

        logging.getLogger("ax").setLevel(logging.ERROR)
        self.client = Client(random_seed=seed)
        self.client.configure_experiment(
            parameters=[
                ChoiceParameterConfig(
                    name=slot, values=list(choices.choices), parameter_type="str", is_ordered=False
                )
                for slot, choices in space.distributions.items()
            ]
        )
        self.client.configure_optimization(objective="-value")
        self.asked: dict[tuple[tuple[str, Any], ...], int] = {}

    def ask(self) -> dict[str, str]:
        ((number, params),) = self.client.get_next_trials(max_trials=1).items()
        self.asked[tuple(sorted(params.items()))] = number
        return dict(params)

    def tell(self, params: dict[str, Any], value: float) -> None:
        number = self.asked.pop(tuple(sorted(params.items())), None)
        if number is None:
            number = self.client.attach_trial(parameters=params)
        self.client.complete_trial(trial_index=number, raw_data={"value": value})


class Smac:
    """SMAC3's facade for hyperparameters: a random forest with expected improvement."""

    def __init__(self, space: bo_act.Space, seed: int) -> None:
        from ConfigSpace import CategoricalHyperparameter, ConfigurationSpace
        from smac import HyperparameterOptimizationFacade, Scenario

        logging.disable(logging.INFO)
        self.choices = ConfigurationSpace(seed=seed)
        self.choices.add(
            [CategoricalHyperparameter(n, list(c.choices)) for n, c in space.distributions.items()]
        )
        self.folder = tempfile.TemporaryDirectory()
        scenario = Scenario(
            self.choices,
            deterministic=True,
            n_trials=10_000,
            seed=seed,
            output_directory=Path(self.folder.name),
        )
        facade = HyperparameterOptimizationFacade
        self.smac = facade(
            scenario,
            lambda config, seed: 0.0,  # never called: it is asked and told
            initial_design=facade.get_initial_design(scenario, n_configs=0),
            overwrite=True,
        )
        self.last: Any = None

    def ask(self) -> dict[str, str]:
        self.last = self.smac.ask()
        return dict(self.last.config)

    def tell(self, params: dict[str, Any], value: float) -> None:
        from ConfigSpace import Configuration
        from smac.runhistory.dataclasses import TrialInfo, TrialValue

        info = self.last
        if info is None or dict(info.config) != params:
            info = TrialInfo(Configuration(self.choices, values=params), seed=0)
        self.smac.tell(info, TrialValue(cost=value))


class Hebo:
    """HEBO's optimizer, one suggestion at a time."""

    def __init__(self, space: bo_act.Space, seed: int) -> None:
        from hebo.design_space.design_space import DesignSpace
        from hebo.optimizers.hebo import HEBO

        parameters = [
            {"name": name, "type": "cat", "categories": list(choices.choices)}
            for name, choices in space.distributions.items()
        ]
        self.hebo = HEBO(DesignSpace().parse(parameters), scramble_seed=seed)

    def ask(self) -> dict[str, str]:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return {name: str(choice) for name, choice in self.hebo.suggest(1).iloc[0].items()}

    def tell(self, params: dict[str, Any], value: float) -> None:
        import numpy as np
        from pandas import DataFrame

        self.hebo.observe(DataFrame([params]), np.array([[value]]))


def ax(space: bo_act.Space, seed: int) -> PeerSampler:
    """Return a sampler that asks Ax."""
    return PeerSampler(space, Ax(space, seed))


def smac(space: bo_act.Space, seed: int) -> PeerSampler:
    """Return a sampler that asks SMAC3."""
    return PeerSampler(space, Smac(space, seed))


def hebo(space: bo_act.Space, seed: int) -> PeerSampler:
    """Return a sampler that asks HEBO, which draws from the global generators."""
    import numpy as np
    import torch

    np.random.seed(seed)
    torch.manual_seed(seed)
    return PeerSampler(space, Hebo(space, seed))


def main() -> None:
    """Compare, and print the table of the documentation."""
    from standing import markdown

    from bo_act.content import names

    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--benchmark", nargs="+", default=names("studies/benchmarks"))
    parser.add_argument("--method", nargs="+", default=METHODS, choices=METHODS)
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--evaluations", type=int, default=50)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path("runs/peers"))
    given = parser.parse_args()
    peers = {"ax": ax, "smac": smac, "hebo": hebo}
    found = bo_act.compare(
        given.benchmark,
        {name: peers.get(name, name) for name in given.method},
        seeds=given.seeds,
        evaluations=given.evaluations,
        workers=given.workers,
        out=given.out,
    )
    print(markdown(found.table, found.summary["comparisons"]))
    print(found.table.groupby("method")["seconds"].mean())


if __name__ == "__main__":
    main()
