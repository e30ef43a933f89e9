"""The formats of users' files: spaces and studies."""

from bo_act.specs.base import Spec
from bo_act.specs.metric import MetricSpec
from bo_act.specs.pruner import PrunerSpec
from bo_act.specs.search import (
    GAINS,
    AcquisitionSpec,
    EmbeddingSpec,
    FeaturesSpec,
    StrategySpec,
    SurrogateSpec,
    WarmStartSpec,
)
from bo_act.specs.space import DomainSpec, SpaceSpec
from bo_act.specs.study import SEARCHED, ConfirmSpec, ParameterSpec, StopSpec, StudySpec
from bo_act.specs.task import AugmentationSpec, DataSpec, ModelSpec, TrainingSpec

__all__ = [
    "GAINS",
    "SEARCHED",
    "AcquisitionSpec",
    "AugmentationSpec",
    "ConfirmSpec",
    "DataSpec",
    "DomainSpec",
    "EmbeddingSpec",
    "FeaturesSpec",
    "MetricSpec",
    "ModelSpec",
    "ParameterSpec",
    "PrunerSpec",
    "SpaceSpec",
    "Spec",
    "StopSpec",
    "StrategySpec",
    "StudySpec",
    "SurrogateSpec",
    "TrainingSpec",
    "WarmStartSpec",
]
