"""Search methods by name, for comparisons."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from pydantic import model_validator

from bo_act.specs import AcquisitionSpec, EmbeddingSpec, Spec, StrategySpec, SurrogateSpec


class MethodSpec(Spec):
    """A search method of a comparison.

    Attributes:
        optuna: one of Optuna's own samplers on the slots of the space, instead of everything below.
        strategy, embedding, surrogate, acquisition: as in a study file.
        fim: use Fisher spectra if there are any (else output features only).
        warm_start: learn from the sources of a comparison, if it has any.
        baselines: with sources, also evaluate the baselines and random functions, after the
            functions that are good in the sources.

    Examples:
        >>> from bo_act import AcquisitionSpec
        >>> MethodSpec(acquisition=AcquisitionSpec(name="log_ei")).acquisition.name
        'log_ei'
    """

    optuna: Literal["random", "tpe", "gp"] | None = None
    strategy: StrategySpec = StrategySpec()
    embedding: EmbeddingSpec = EmbeddingSpec()
    surrogate: SurrogateSpec = SurrogateSpec()
    acquisition: AcquisitionSpec = AcquisitionSpec()
    fim: bool = True
    warm_start: bool = True
    baselines: bool = False

    @model_validator(mode="after")
    def _evaluates_once(self) -> MethodSpec:
        if self.acquisition.repeats:
            raise ValueError(
                "expected repeat = 'never' in a comparison, because a benchmark has one value per "
                "function, got 'auto'; leave acquisition.repeat out"
            )
        return self


METHODS: Mapping[str, MethodSpec] = {
    "default": MethodSpec(),
    "cold": MethodSpec(warm_start=False),
    "with_baselines": MethodSpec(baselines=True),
    "ucb": MethodSpec(acquisition=AcquisitionSpec(name="ucb")),
    "log_ei": MethodSpec(acquisition=AcquisitionSpec(name="log_ei")),
    "log_nei": MethodSpec(acquisition=AcquisitionSpec(name="log_nei")),
    "log_pi": MethodSpec(acquisition=AcquisitionSpec(name="log_pi")),
    "max_value_entropy": MethodSpec(acquisition=AcquisitionSpec(name="max_value_entropy")),
    "thompson": MethodSpec(acquisition=AcquisitionSpec(name="thompson")),
    "knowledge_gradient": MethodSpec(acquisition=AcquisitionSpec(name="knowledge_gradient")),
    "per_second": MethodSpec(acquisition=AcquisitionSpec(per_second=True)),
    "hypervolume": MethodSpec(acquisition=AcquisitionSpec(name="hypervolume")),
    "greedy": MethodSpec(acquisition=AcquisitionSpec(name="greedy")),
    "outputs": MethodSpec(fim=False),
    "forest": MethodSpec(
        surrogate=SurrogateSpec(name="forest", targets="rank_normal"),
        acquisition=AcquisitionSpec(name="log_ei"),
    ),
    # Bingham and Miikkulainen (2023), arXiv 2301.05785.
    "published": MethodSpec(
        embedding=EmbeddingSpec(name="umap"),
        surrogate=SurrogateSpec(name="knn", targets="standardized"),
        acquisition=AcquisitionSpec(name="greedy"),
    ),
    "evolution": MethodSpec(strategy=StrategySpec(name="evolution")),
    "random": MethodSpec(strategy=StrategySpec(name="random")),
    "optuna_random": MethodSpec(optuna="random"),
    "tpe": MethodSpec(optuna="tpe"),
    "gpsampler": MethodSpec(optuna="gp"),
}
"""``default`` is the search of a study file that does not mention it."""
