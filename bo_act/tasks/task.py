"""Task: space, data, network and features of a study file, loaded."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from bo_act.activations.expressions import Expression
from bo_act.activations.module import activations_of
from bo_act.data.loading import Data, load_data
from bo_act.data.samples import Inputs, Samples, mapped
from bo_act.errors import BoActError, FeatureError, NetworkError, SpecError
from bo_act.features.compute import Executor, Progress, compute_features
from bo_act.features.fisher_worker import FisherJob, MakeNetwork, Spectra
from bo_act.features.table import FeatureTable
from bo_act.fisher.calls import Targets
from bo_act.networks import (
    Activations,
    NetworkBuilder,
    check_gradients,
    load_network,
)
from bo_act.networks.initialization import Initialization
from bo_act.spaces.space import Space, load_space
from bo_act.specs import FeaturesSpec, StudySpec
from bo_act.specs.base import derived_seed
from bo_act.tasks.methods import METHOD_PARTS, OwnMethod
from bo_act.tasks.objective import Objective
from bo_act.tasks.own_network import OwnNetwork
from bo_act.tasks.study_network import StudyNetwork
from bo_act.training.checkpoint import Checkpoint
from bo_act.training.evaluation import metric_name
from bo_act.training.examples import per_example
from bo_act.training.losses import loss_name
from bo_act.training.trainer import (
    EVALUATION_BATCH,
    TrainingResult,
    cpu_threads,
    measure,
    pick_device,
    train,
)
from bo_act.user_code.failures import USERS, Failure, one_line

SPACE = "the space's functions"
"""What the space is called among the hashes of what a study file names."""


@dataclass(frozen=True)
class Task:
    """One network on one data set, and the space of functions for it.

    Attributes:
        spec: the study file.
        space: of the study.
        given_data, given_builder: of the study; None with your own objective.
        objective: your own training function.
        methods: your own parts of the search method, by their keys in the study file.
        own_network: your own network and batch for Fisher spectra.
    """

    spec: StudySpec
    space: Space
    given_data: Data | None
    given_builder: NetworkBuilder | None
    objective: Objective | None = None
    methods: Mapping[str, OwnMethod] = field(default_factory=dict)
    own_network: OwnNetwork | None = None

    @classmethod
    def load(cls, spec: StudySpec) -> Task:
        """Load everything in a study file, with the cheapest checks first."""
        space = load_space(spec.space)
        builder = None if spec.model is None else load_network(spec.model)
        objective = None if spec.objective is None else Objective.load(spec.objective)
        methods = {key: own for key in METHOD_PARTS if (own := OwnMethod.load(spec, key))}
        own_network = OwnNetwork.load(spec)
        pick_device(spec.training.device)
        data = None
        if spec.data is not None:
            data = load_data(spec.data, spec.augmentation, loss=spec.training.loss)
        return cls(spec, space, data, builder, objective, methods, own_network)

    @property
    def data(self) -> Data:
        """The data set.

        Raises:
            SpecError: the study has none.
        """
        if self.given_data is None:
            raise SpecError("this needs [data], which a study with its own objective may lack")
        return self.given_data

    @property
    def builder(self) -> NetworkBuilder:
        """The network.

        Raises:
            SpecError: the study has none.
        """
        if self.given_builder is None:
            raise SpecError("this needs [model], which a study with its own objective may lack")
        return self.given_builder

    @property
    def is_unenumerated(self) -> bool:
        """Whether the search is local, over expression trees, because the space is not listed."""
        wanted = self.spec.candidates
        return wanted == "trees" or (wanted == "auto" and not self.space.can_be_listed)

    @property
    def content(self) -> dict[str, str]:
        """Hashes of the study's content: trials of different content are not comparable."""
        content = {
            SPACE: (self.space.hash if self.is_unenumerated else self.space.catalogue.hash),
        }
        if self.given_data is not None and self.given_builder is not None:
            content["the data"] = self.data.digest
            content["the network's file"] = self.builder.source_hash
        if self.objective is not None:
            content["the objective's file"] = self.objective.source_hash
        if self.own_network is not None:
            content["the file of features.of"] = self.own_network.source_hash
        for key, own in self.methods.items():
            content[f"the {key}'s file"] = own.source_hash
        return content

    def with_settings(self, settings: Mapping[str, Any]) -> Task:
        """Return the task with other values at dotted keys of the study file."""
        if not settings:
            return self
        spec = self.spec.with_settings(settings)
        builder = self.given_builder
        if builder is not None and spec.model is not None:
            builder = builder.with_options(spec.model.options)
        return replace(self, spec=spec, given_builder=builder)

    def network(self, *, seed: int) -> StudyNetwork:
        """Return the untrained network with the seed's weights, without its activation function."""
        data = self.data
        init: Initialization = self.spec.model.init if self.spec.model else "default"
        return StudyNetwork(self.builder, data.facts, data.example, seed, init)

    def check(self) -> None:
        """Refuse a network that cannot be trained with every function, before the first trial.

        Raises:
            NetworkError: it changes a tensor in place that a function's gradient needs.
        """
        if self.given_data is not None and self.given_builder is not None:
            inputs, _ = self.data.train.take(
                torch.arange(min(2, len(self.data.train)), device="cpu")
            )
            network = self.network(seed=self.spec.seed)
            on_cpu = mapped(inputs, lambda tensor: tensor.cpu())
            check_gradients(network, on_cpu, name=str(self.builder.path))

    def features(
        self,
        progress: Progress | None = None,
        *,
        workers: int = 1,
        executor: Executor = "process",
    ) -> FeatureTable:
        """Compute the feature table, or read it from the cache.

        Args:
            progress: called with (spectra done, spectra in all).
            workers: parallel workers, see ``compute_features``.
            executor: of the workers, see ``compute_features``.
        """
        spec, own = self._features_spec, self.own_network
        if not spec.fim or (own is None and self.given_builder is None):
            return compute_features(self.space, spec=spec)
        network: MakeNetwork
        targets: Targets | None
        if own is not None:
            network, path = own, own.path
            inputs, targets, key = own.batch()
        else:
            study = self.network(seed=spec.seed)
            network, path, key = study, self.builder.path, study.key
            inputs, targets = self._features_batch()
        threads = self.spec.training.threads
        try:
            with cpu_threads(threads):
                return compute_features(
                    self.space,
                    network=network,
                    inputs=inputs,
                    targets=targets,
                    spec=spec,
                    device=pick_device(self.spec.training.device),
                    key=key,
                    progress=progress,
                    workers=workers,
                    executor=executor,
                    threads=threads,
                )
        except FeatureError as error:
            if own is None:
                raise
            raise FeatureError(f"features.of: {path}: {error}") from error
        except USERS as error:
            if isinstance(error, BoActError) or not Failure.of(error).file:
                raise
            raise NetworkError(
                f"{path}: the network fails when its features are computed: {one_line(error)}; "
                "fix it, or turn them off (features.fim = false)"
            ) from error

    def act_bench_vectors(
        self, features: FeatureTable, progress: Progress | None = None
    ) -> Callable[[int], NDArray[np.float64] | None] | None:
        """Return a function that computes Act-Bench vectors; None without Fisher spectra.

        They use the network and batch of the spectra, in float32 like the released ones. There are
        none of your own network (``features.of``).

        Args:
            features: of this task; without a spectrum there is no vector.
            progress: called with (vectors done, vectors in all).

        Returns:
            From an index of the catalogue to ``act_bench_vector``, or to None.
        """
        if "fim" not in features.blocks or self.own_network or self.data.kind != "classes":
            return None
        spec = self._features_spec.model_copy(update={"precision": "float32"})
        job = FisherJob(self.network(seed=spec.seed), *self._features_batch(), spec)
        spectra = Spectra(job, pick_device(self.spec.training.device))
        present = features.blocks["fim"].present
        total, done = int(present.sum()), 0
        if progress:
            progress(done, total)

        def vector(index: int) -> NDArray[np.float64] | None:
            nonlocal done
            if not present[index]:
                return None
            with cpu_threads(self.spec.training.threads):
                vector = spectra.act_bench_vector(self.space.catalogue.text(index))
            done += 1
            if progress:
                progress(done, total)
            return vector

        return vector

    @property
    def _features_spec(self) -> FeaturesSpec:
        """The options of the features, by default with the loss of the training.

        A mean absolute error has the Fisher matrix of a squared one, up to a factor: so has any
        distribution around a mean.
        """
        spec = self.spec.features.model_copy(update={"of": None})
        if self.own_network is not None:
            return spec  # what its own targets tell
        if self.given_data is None or spec.loss is not None or self.data.kind != "labels":
            return spec  # the targets' dtype decides
        return spec.model_copy(update={"loss": "binary_cross_entropy"})

    def _features_batch(self) -> tuple[Inputs, Tensor]:
        """Return the inputs and targets of the spectra."""
        spec, train_set = self.spec.features, self.data.train
        order = torch.randperm(
            len(train_set), device="cpu", generator=torch.Generator().manual_seed(spec.seed)
        )
        return train_set.take(order[: spec.batch_size])

    def train(
        self,
        function: Expression | Mapping[str, Expression],
        *,
        seed: int,
        settings: Mapping[str, Any] | None = None,
        report: Callable[[int, float], None] | None = None,
        checkpoint: Checkpoint | None = None,
        stop: Callable[[], bool] | None = None,
    ) -> tuple[nn.Module, TrainingResult]:
        """Build the network with a function and train it.

        Args:
            function: the activation function, or one for each of the network's names.
            settings: values that replace those of the study file, by dotted key.
            seed: of the initial weights and, independently, of the order of the data.
            report: called after each epoch with its number and the metric's value.
            checkpoint: file to save the state to and resume from; see ``checkpoint``.
            stop: asked after each step whether to save the state and stop.
        """
        if self.objective is not None:
            raise SpecError("the study has its own objective, which cannot train another network")
        task = self.with_settings(settings or {})
        fresh: Activations = activations_of(function, task.spec.activation.options)
        network = task.network(seed=seed)(fresh)
        # Independent of the weights' random numbers.
        result = train(
            network,
            self.data,
            task.spec.training,
            metric=self.metric,
            seed=derived_seed(seed, 1_000_003),
            report=report,
            checkpoint=checkpoint,
            stop=stop,
        )
        return network, result

    def measure(self, network: nn.Module, samples: Samples) -> tuple[float, float]:
        """Return the study's metric and the mean loss of a trained network, see ``measure``.

        A diverged training has a value that is not finite.
        """
        spec = self.spec.training
        metric = metric_name(self.data, self.metric)
        value, loss = measure(
            network,
            samples,
            batch_size=max(spec.batch_size, EVALUATION_BATCH),
            device=pick_device(spec.device),
            precision=spec.precision,
            metric=metric,
            loss=loss_name(self.data, spec),
        )
        worst = self.data.worst(metric)
        return value if math.isfinite(value) or worst is None else worst, loss

    def per_example(self, network: nn.Module, samples: Samples) -> NDArray[Any]:
        """Return each sample's contribution to the study's metric, (n,)."""
        spec = self.spec.training
        return per_example(
            network,
            samples,
            batch_size=max(spec.batch_size, EVALUATION_BATCH),
            device=pick_device(spec.device),
            precision=spec.precision,
            metric=metric_name(self.data, self.metric),
            loss=loss_name(self.data, spec),
        )

    @property
    def metric(self) -> str:
        """What the built-in training measures, a key of ``METRICS``."""
        return self.spec.metric.key

    def checkpoint(
        self,
        function: Expression | Mapping[str, Expression],
        *,
        seed: int,
        settings: Mapping[str, Any] | None = None,
    ) -> Checkpoint:
        """Return the checkpoint of a training, identified by everything that determines it."""
        task = self.with_settings(settings or {})
        spec = task.spec
        follows_from = {
            "function": (
                str(function)
                if isinstance(function, Expression)
                else {name: str(stage) for name, stage in function.items()}
            ),
            "seed": seed,
            "model": spec.model and spec.model.model_dump(mode="json"),
            "augmentation": spec.augmentation.model_dump(mode="json"),
            "training": spec.training.model_dump(mode="json", exclude={"device", "threads"}),
            **({"activation": options} if (options := spec.activation.options) else {}),
            "data": task.data.digest,
            "network": task.builder.source_hash,
        }
        key = hashlib.sha256(json.dumps(follows_from, sort_keys=True).encode()).hexdigest()
        return Checkpoint(Path("runs") / spec.name / "checkpoints" / f"{key[:16]}.pt", key)

    def context(self, *, seed: int, settings: Mapping[str, Any]) -> dict[str, Any]:
        """Return the arguments available to your own objective, by name."""
        task = self.with_settings(settings)
        offered: dict[str, Any] = {
            "seed": seed,
            "device": pick_device(task.spec.training.device),
            "settings": dict(settings),
            "training": task.spec.training,
        }
        if self.given_data is not None:
            offered |= {"network": task.network(seed=seed), "data": self.data}
        return offered
