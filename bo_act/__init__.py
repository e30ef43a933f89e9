"""bo-act: Bayesian optimization of activation functions over a learned embedding.

Importing this package is light; torch and the rest are loaded when a name is first used.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib import import_module
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from types import ModuleType
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from bo_act.activations.expressions import Expression, canonical, parse
    from bo_act.activations.module import Activation
    from bo_act.benchmark.build import build_benchmark
    from bo_act.benchmark.parquet import open_benchmark
    from bo_act.benchmark.table import Benchmark
    from bo_act.comparison.compare import Comparison, compare
    from bo_act.comparison.replay import replay
    from bo_act.errors import BoActError
    from bo_act.events import Events
    from bo_act.exports.exporter import export
    from bo_act.features.compute import compute_features
    from bo_act.features.table import Block, FeatureTable
    from bo_act.fisher.spectra import FimSpectra, fim_spectra
    from bo_act.metrics import Metric
    from bo_act.networks.replacement import Replaced, replace_activations
    from bo_act.report.study import write_report
    from bo_act.search.acquisition.own import OwnAcquisition
    from bo_act.search.configurations import Configurations, Parameters
    from bo_act.search.embedding.embedding import Embedding, PcaEmbedder
    from bo_act.search.method import METHODS, MethodSpec
    from bo_act.search.observations import Observations
    from bo_act.search.proposal import Proposal
    from bo_act.search.searcher import Searcher
    from bo_act.search.strategies import Strategy
    from bo_act.search.surrogate.own import OwnSurrogate
    from bo_act.search.warm_start import Source
    from bo_act.spaces.catalogue import Catalogue
    from bo_act.spaces.space import Space, load_space
    from bo_act.specs import (
        AcquisitionSpec,
        EmbeddingSpec,
        FeaturesSpec,
        SpaceSpec,
        StudySpec,
        SurrogateSpec,
    )
    from bo_act.specs.files import read_study
    from bo_act.study.results.explanation import why
    from bo_act.study.results.own_confirmation import ConfirmedFunction, confirm
    from bo_act.study.results.recommendation import Recommendation, Recommended, recommend
    from bo_act.study.results.stopping import improvement_left
    from bo_act.study.results.summary import StudyResult
    from bo_act.study.running.runner import run_study
    from bo_act.study.sampling.points import EmbeddingSampler
    from bo_act.study.sampling.sampler import ActivationSampler
    from bo_act.study.sampling.warm_start import add_source_trials, read_sources
    from bo_act.training.outcomes import Diverged

# Modules of lazily loaded names.
_HOME = {
    "AcquisitionSpec": "specs",
    "Activation": "activations.module",
    "ActivationSampler": "study.sampling.sampler",
    "Benchmark": "benchmark.table",
    "Block": "features.table",
    "BoActError": "errors",
    "Catalogue": "spaces.catalogue",
    "Comparison": "comparison.compare",
    "Configurations": "search.configurations",
    "ConfirmedFunction": "study.results.own_confirmation",
    "Diverged": "training.outcomes",
    "Embedding": "search.embedding.embedding",
    "EmbeddingSampler": "study.sampling.points",
    "EmbeddingSpec": "specs",
    "Events": "events",
    "Expression": "activations.expressions",
    "FeatureTable": "features.table",
    "FeaturesSpec": "specs",
    "FimSpectra": "fisher.spectra",
    "METHODS": "search.method",
    "MethodSpec": "search.method",
    "Metric": "metrics",
    "Observations": "search.observations",
    "Parameters": "search.configurations",
    "PcaEmbedder": "search.embedding.embedding",
    "OwnAcquisition": "search.acquisition.own",
    "OwnSurrogate": "search.surrogate.own",
    "Proposal": "search.proposal",
    "Searcher": "search.searcher",
    "Source": "search.warm_start",
    "Space": "spaces.space",
    "SpaceSpec": "specs",
    "Strategy": "search.strategies",
    "Recommendation": "study.results.recommendation",
    "Recommended": "study.results.recommendation",
    "Replaced": "networks.replacement",
    "StudyResult": "study.results.summary",
    "StudySpec": "specs",
    "SurrogateSpec": "specs",
    "add_source_trials": "study.sampling.warm_start",
    "build_benchmark": "benchmark.build",
    "canonical": "activations.expressions",
    "compare": "comparison.compare",
    "compute_features": "features.compute",
    "confirm": "study.results.own_confirmation",
    "export": "exports.exporter",
    "fim_spectra": "fisher.spectra",
    "improvement_left": "study.results.stopping",
    "load_space": "spaces.space",
    "open_benchmark": "benchmark.parquet",
    "parse": "activations.expressions",
    "read_sources": "study.sampling.warm_start",
    "read_study": "specs.files",
    "recommend": "study.results.recommendation",
    "replace_activations": "networks.replacement",
    "replay": "comparison.replay",
    "run_study": "study.running.runner",
    "why": "study.results.explanation",
    "write_report": "report.study",
}

__all__ = ["__version__", *_HOME]  # noqa: PLE0604


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'bo_act' has no attribute {name!r}")
    value = getattr(import_module(f"bo_act.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)


# --- torch.load takes an Activation by its safe default ---------------------------------------

_LOADING = "torch.serialization"


def _rebuild(*options: Any) -> Any:
    """Make the Activation of a checkpoint from its text and two switches."""
    return import_module("bo_act.activations.module")._rebuild(*options)


def _allow(loading: ModuleType) -> None:
    loading.add_safe_globals([(_rebuild, "bo_act.activations.module._rebuild")])


class _OnceTorchIsThere(MetaPathFinder):
    """Registers with torch at its import; importing it here would take seconds."""

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        del path, target
        if name != _LOADING:
            return None
        sys.meta_path.remove(self)
        spec = find_spec(name)
        if spec is not None and spec.loader is not None:
            execute = spec.loader.exec_module

            def executed(module: ModuleType) -> None:
                execute(module)
                _allow(module)

            spec.loader.exec_module = executed  # type: ignore[method-assign]
        return spec


if _LOADING in sys.modules:
    _allow(sys.modules[_LOADING])
else:
    sys.meta_path.insert(0, _OnceTorchIsThere())
