"""Task: what a study file names, loaded: space, data, network, features."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

from bo_act.activations.expressions import Expression
from bo_act.activations.module import Activation
from bo_act.activations.space import Space, load_space
from bo_act.features.compute import Progress, compute_features
from bo_act.features.table import FeatureTable
from bo_act.networks import NetworkBuilder, load_network
from bo_act.specs import StudySpec
from bo_act.training.data import Data, load_data
from bo_act.training.trainer import TrainingResult, cpu_threads, pick_device, train


@dataclass(frozen=True)
class Task:
    """One network on one data set, and the space of functions for it.

    Attributes:
        spec: the study file.
        space, data, builder: what it names.
    """

    spec: StudySpec
    space: Space
    data: Data
    builder: NetworkBuilder

    @classmethod
    def load(cls, spec: StudySpec) -> Task:
        """Load everything that a study file names; the cheapest errors come first."""
        space = load_space(spec.space)
        builder = load_network(spec.model)
        pick_device(spec.training.device)
        return cls(spec, space, load_data(spec.data), builder)

    @property
    def content(self) -> dict[str, str]:
        """What the study file names, by its hash: trials of other content do not compare."""
        return {
            "the space's functions": self.space.catalogue.hash,
            "the data": self.data.digest,
            "the network's file": self.builder.source_hash,
        }

    def network(self, activation: Callable[[], nn.Module], *, seed: int) -> nn.Module:
        """Build the untrained network with fresh activation modules and the seed's weights."""
        data = self.data
        return self.builder(
            activation,
            in_channels=data.in_channels,
            image_size=data.image_size,
            num_classes=data.num_classes,
            seed=seed,
        )

    def features(self, progress: Progress | None = None) -> FeatureTable:
        """Compute the feature table, or read it where it was computed before."""
        spec = self.spec.features
        if not spec.fim:
            return compute_features(self.space, spec=spec)
        train_set = self.data.train
        order = torch.randperm(len(train_set), generator=torch.Generator().manual_seed(spec.seed))
        batch = order[: spec.batch_size]
        with cpu_threads(self.spec.training.threads):
            return compute_features(
                self.space,
                network=lambda activation: self.network(activation, seed=spec.seed),
                images=train_set.images[batch],
                labels=train_set.labels[batch],
                spec=spec,
                device=pick_device(self.spec.training.device),
                key={"network": self.builder.source_hash, "data": self.data.digest},
                progress=progress,
            )

    def train(
        self,
        expression: Expression,
        *,
        seed: int,
        report: Callable[[int, float], None] | None = None,
    ) -> tuple[nn.Module, TrainingResult]:
        """Build the network with a function and train it.

        Args:
            expression: the activation function.
            seed: of the initial weights and, separately drawn from it, the order of the data.
            report: called after each epoch with its number and the validation accuracy.
        """
        network = self.network(lambda: Activation(expression), seed=seed)
        # Apart, so that the order of the data does not repeat the weights' random numbers.
        result = train(network, self.data, self.spec.training, seed=seed + 1_000_003, report=report)
        return network, result
