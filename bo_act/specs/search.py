"""Search options: features, embedding, surrogate, acquisition, warm start."""

from __future__ import annotations

import re
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, field_validator, model_validator

from bo_act.errors import nearest
from bo_act.specs.base import Count, Fraction, PositiveInt, Seed, Spec

OWN = r"^.+\.py:[A-Za-z_]\w*$"
"""How a function of your own is named in a file: ``FILE.py:FUNCTION``."""


class FeaturesSpec(Spec):
    """Features of each function, computed before training.

    Attributes:
        fim: compute Fisher spectra of the untrained network (else only output features).
        of: your own network and batch for the spectra, ``"my_train.py:network_and_batch"``, instead
            of ``[model]`` and ``[data]``: a function of ``activation`` and ``seed`` that returns
            ``(network, inputs)`` or ``(network, inputs, targets)``.
        fisher: how labels enter the Fisher matrix: sampled from the model's predictive
            distribution (``mc``), all of them weighted by it (``exact``), or the true ones
            (``empirical``).
        loss: what the network's outputs mean: logits of classes (``cross_entropy``) or of 0/1
            labels (``binary_cross_entropy``), or means of normal distributions of variance 1
            (``mse``: the loss is half the squared error; classes are one-hot targets).
            None: ``mse`` for floating-point targets, else ``cross_entropy``.
        label_smoothing: of the true labels; only ``empirical`` uses it.
        weight_sharing: how to treat a layer used at many positions of an image: positions as
            separate images (``expand``), or summed first (``reduce``).
        statistics: of batch normalization: those of the batch, or the running ones.
        batch_size: training images in the batch of the Fisher matrix.
        quantiles: number of quantiles per layer's spectrum.
        precision: of the network while its Fisher matrix is computed. float32 gives eigenvalues
            down to about 1e-14 of the trace; float64 changes little, and takes a convolutional
            network on a CPU several times as long.
        subset: how many functions get a Fisher spectrum: the baselines and others, spread out
            over the output features; None means all of them.
        seed: of the network's initial weights and of the sampled labels.

    Examples:
        >>> FeaturesSpec(quantiles=64, fisher="exact").batch_size
        128
    """

    fim: bool = True
    of: Annotated[str, Field(pattern=OWN)] | None = None
    fisher: Literal["mc", "exact", "empirical"] = "mc"
    loss: Literal["cross_entropy", "mse", "binary_cross_entropy"] | None = None
    label_smoothing: Fraction = 0.0
    weight_sharing: Literal["expand", "reduce"] = "expand"
    statistics: Literal["batch", "running"] = "batch"
    batch_size: PositiveInt = 128
    quantiles: Annotated[int, Field(ge=8, le=10_000)] = 128
    precision: Literal["float32", "float64"] = "float32"
    subset: PositiveInt | None = None
    seed: Seed = 0

    @model_validator(mode="after")
    def _spectra_of_something(self) -> FeaturesSpec:
        if self.of is not None and not self.fim:
            raise ValueError("of names a network for Fisher spectra, which fim = false turns off")
        return self


class MethodPart(Spec):
    """A named part of a search method: a known name, or ``FILE.py:FUNCTION``."""

    name: str
    known: ClassVar[tuple[str, ...]]

    @property
    def is_own(self) -> bool:
        """Whether a function of your own makes it."""
        return self.name not in self.known

    @field_validator("name")
    @classmethod
    def _has_a_name(cls, name: str) -> str:
        if name not in cls.known and not re.match(OWN, name):
            raise ValueError(
                f"expected one of {', '.join(cls.known)}, or FILE.py:FUNCTION for your own, got "
                f"{name!r}{nearest(name, cls.known)}"
            )
        return name


def _names(known: tuple[str, ...]) -> dict[str, Any]:
    """Return the JSON Schema of a name."""
    return {"anyOf": [{"enum": list(known)}, {"pattern": OWN}]}


EMBEDDINGS = ("pca", "umap")


class EmbeddingSpec(MethodPart):
    """The embedding, from features to points.

    Attributes:
        name: principal components of each feature block, scaled by rank (``pca``); the published
            two dimensions of UMAP (``umap``; needs the extra ``umap``); or ``FILE.py:FUNCTION``,
            which returns the points.
        outputs, fim: for ``pca``: components of the output features and of the Fisher spectra.
        seed: for ``umap``.

    Examples:
        >>> EmbeddingSpec(outputs=4, fim=8).name
        'pca'
    """

    known: ClassVar[tuple[str, ...]] = EMBEDDINGS
    name: Annotated[str, Field(json_schema_extra=_names(EMBEDDINGS))] = "pca"
    outputs: Annotated[int, Field(ge=1, le=64)] = 6
    fim: Annotated[int, Field(ge=1, le=64)] = 6
    seed: Seed = 0


STRATEGIES = ("model", "evolution", "random")


class StrategySpec(MethodPart):
    """The strategy that chooses functions after the start of a search.

    Attributes:
        name: a surrogate and an acquisition function (``model``), regularized evolution
            (``evolution``), random choice (``random``), or ``FILE.py:NAME``, which makes a
            ``Strategy``.
        population: for ``evolution``: functions alive.
        tournament: for ``evolution``: functions that compete to be the parent.
    """

    known: ClassVar[tuple[str, ...]] = STRATEGIES
    name: Annotated[str, Field(json_schema_extra=_names(STRATEGIES))] = "model"
    population: PositiveInt = 20
    tournament: PositiveInt = 5


SURROGATES = ("gp", "knn", "forest")


class SurrogateSpec(MethodPart):
    """The model of value over the embedding.

    Attributes:
        name: a Gaussian process (``gp``), nearest neighbours (``knn``), a random forest
            (``forest``), or ``FILE.py:FUNCTION``, which makes a BoTorch model.
        targets: transformation of the values: lower tail winsorized and values far above the rest
            pulled closer, ranks mapped to normal quantiles, or standardized.
        noise: for ``gp`` and your own: standard deviation between training runs of one function
            with different seeds, in units of the value, if it is known; a lower bound for the
            fitted noise. None: fitted only. Ranks have no unit, so ``rank_normal`` takes none.
        kernel: for ``gp``: of each feature block, Matérn of smoothness 5/2, 3/2 or 1/2, or squared
            exponential (``rbf``).
        ard: for ``gp``: a length scale for each coordinate, instead of one for each block.
        neighbours: for ``knn``.
        trees: for ``forest``.

    Examples:
        >>> SurrogateSpec(name="forest", trees=50).targets
        'winsorized'
    """

    known: ClassVar[tuple[str, ...]] = SURROGATES
    name: Annotated[str, Field(json_schema_extra=_names(SURROGATES))] = "gp"
    targets: Literal["winsorized", "rank_normal", "standardized"] = "winsorized"
    noise: Annotated[float, Field(gt=0)] | None = None
    kernel: Literal["matern_5_2", "matern_3_2", "matern_1_2", "rbf"] = "matern_5_2"
    ard: bool = False
    neighbours: PositiveInt = 3
    trees: PositiveInt = 100

    @model_validator(mode="after")
    def _noise_has_a_unit(self) -> SurrogateSpec:
        takes = self.name == "gp" or self.is_own
        if self.noise is not None and (not takes or self.targets == "rank_normal"):
            raise ValueError(
                f"expected noise with the surrogate 'gp' on winsorized or standardized targets, "
                f"got the surrogate {self.name!r} on {self.targets!r} targets; leave noise out"
            )
        return self

    @model_validator(mode="after")
    def _has_a_kernel(self) -> SurrogateSpec:
        if self.name != "gp" and (self.ard or self.kernel != "matern_5_2"):
            raise ValueError(
                f"expected kernel and ard with the surrogate 'gp', got the surrogate "
                f"{self.name!r}; leave them out"
            )
        return self


GAINS = ("max_value_entropy", "log_ei", "log_nei", "knowledge_gradient", "hypervolume")
"""Acquisition functions in a unit of what an evaluation gains."""


ACQUISITIONS = (
    "max_value_entropy",
    "ucb",
    "log_ei",
    "log_nei",
    "log_pi",
    "thompson",
    "knowledge_gradient",
    "greedy",
    "hypervolume",
)


class AcquisitionSpec(MethodPart):
    """The acquisition function, maximized over the candidates to choose the next one.

    Attributes:
        name: ``max_value_entropy`` (GIBBON); upper confidence bound (``ucb``); log of the
            expected improvement (``log_ei``), also with a noisy incumbent (``log_nei``); log of
            the probability of improvement (``log_pi``); one draw of the posterior (``thompson``);
            expected increase of the largest mean (``knowledge_gradient``); the mean alone
            (``greedy``); expected hypervolume improvement of value and inference cost
            (``hypervolume``); or ``FILE.py:FUNCTION``, which returns a BoTorch acquisition
            function.
        beta: for ``ucb``: mean + beta · standard deviation, in units of the warped target.
        per_second: divide the gain of an evaluation (entropy, improvement) by its predicted
            seconds of training.
        repeat: ``auto``: evaluated functions stay candidates of ``max_value_entropy``, so that one
            is trained again, with another seed, where that tells more of the maximum than a new
            one does. ``never``: each is evaluated once.

    Examples:
        >>> AcquisitionSpec(name="ucb", beta=2.0).beta
        2.0
    """

    known: ClassVar[tuple[str, ...]] = ACQUISITIONS
    name: Annotated[str, Field(json_schema_extra=_names(ACQUISITIONS))] = "max_value_entropy"
    beta: Annotated[float, Field(ge=0)] = 3.0
    per_second: bool = False
    repeat: Literal["never", "auto"] = "never"

    @model_validator(mode="after")
    def _gains(self) -> AcquisitionSpec:
        if self.per_second and self.name not in GAINS:
            raise ValueError(
                f"expected per_second with an acquisition function that measures a gain "
                f"({', '.join(GAINS)}), got {self.name!r}"
            )
        if self.repeats and (self.name != "max_value_entropy" or self.per_second):
            raise ValueError(
                "expected repeat = 'auto' with 'max_value_entropy', without per_second, got "
                f"{self.name!r}"
                f"{' per second' if self.per_second else ''}; leave repeat out"
            )
        return self

    @property
    def repeats(self) -> bool:
        """Whether evaluated functions may be evaluated again."""
        return self.repeat == "auto"

    @property
    def needs_costs(self) -> bool:
        """Whether it needs the inference cost of each function."""
        return self.per_second or self.name == "hypervolume"

    @property
    def needs_list(self) -> bool:
        """Whether it needs a list of all functions."""
        return self.needs_costs or self.repeats or self.name == "knowledge_gradient"


class WarmStartSpec(Spec):
    """Sources of a warm start: other tasks to learn from.

    Attributes:
        sources: benchmarks (names or files) and studies (names or ``.toml`` files).
        first: number of functions, good in the sources on average, to evaluate first.
        baselines: then also evaluate the baselines and ``initial`` random functions, as in a
            search without sources.
        as_trials: how many of each source's best functions are added to the study as finished
            trials, marked with the user attribute ``source``. Dashboards show them, but the study
            does not count them.
    """

    sources: tuple[str, ...] = ()
    first: Count = 5
    baselines: bool = False
    as_trials: Count = 0
