"""The forms of all files that users write: spaces and studies."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

PositiveInt = Annotated[int, Field(gt=0)]
PositiveFloat = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Fraction = Annotated[float, Field(ge=0, lt=1)]


class Spec(BaseModel):
    """Base of all specs: frozen, unknown keys refused."""

    model_config = ConfigDict(extra="forbid", frozen=True)


# --- spaces ---------------------------------------------------------------------------------


class DomainSpec(Spec):
    """The interval on which two functions are compared, and when they count as equal."""

    low: float = -5.0
    high: float = 5.0
    points: Annotated[int, Field(ge=2)] = 1000
    # Below 1e-12, large values have no digits left that could differ.
    tolerance: Annotated[float, Field(ge=1e-12)] = 1e-6

    @model_validator(mode="after")
    def _ordered(self) -> DomainSpec:
        if not self.low < self.high:
            raise ValueError(f"expected low < high, got low = {self.low}, high = {self.high}")
        return self


class SpaceSpec(Spec):
    """A search space: operators, shapes of trees, and named functions.

    Attributes:
        unary, binary, nary: operator names that fill the slots of the schemas.
        schemas: shapes of trees, e.g. ``"binary(unary(x),unary(x))"``; an operator's own name in
            a schema stands for itself.
        expressions: single functions that belong to the space besides the schemas.
        baselines: members of the space to evaluate first, in this order.
    """

    name: Annotated[str, Field(min_length=1)]
    description: str = ""
    unary: tuple[str, ...] = ()
    binary: tuple[str, ...] = ()
    nary: tuple[str, ...] = ()
    schemas: tuple[str, ...] = ()
    expressions: tuple[str, ...] = ()
    baselines: tuple[str, ...] = ()
    domain: DomainSpec = DomainSpec()

    @model_validator(mode="after")
    def _not_empty(self) -> SpaceSpec:
        if not self.schemas and not self.expressions:
            raise ValueError("expected at least one of 'schemas' and 'expressions', got neither")
        return self


# --- studies --------------------------------------------------------------------------------


class ModelSpec(Spec):
    """A network: a name in ``models/`` or a path, and options passed on to its ``build``."""

    name: Annotated[str, Field(min_length=1)]
    options: dict[str, Any] = {}


class DataSpec(Spec):
    """A data set and how it is split. Test images are apart from all of this.

    Attributes:
        root: folder of the files (``fashion_mnist``); default: the cache folder.
        download: fetch the files when they are missing.
        train: at most that many training images (default: all that validation leaves).
        validation: number of images held out of the training set for validation.
        image_size: side in pixels to which images are average-pooled or padded (default: as is).
        seed: decides which images are held out.
    """

    name: Literal["digits", "fashion_mnist"]
    root: Path | None = None
    download: bool = True
    train: PositiveInt | None = None
    validation: PositiveInt | None = None
    image_size: PositiveInt | None = None
    seed: int = 0


class TrainingSpec(Spec):
    """How one network is trained.

    Attributes:
        learning_rate: the peak of the schedule.
        warmup: share of all steps in which the learning rate rises; ``constant`` has none.
        device: ``auto`` takes the GPU where there is one.
        precision: ``auto`` is bfloat16 autocast on a GPU and float32 on a CPU.
        threads: CPU threads for training; default: torch's own choice.
    """

    epochs: PositiveInt = 10
    batch_size: PositiveInt = 128
    optimizer: Literal["sgd", "adamw"] = "sgd"
    learning_rate: PositiveFloat = 0.05
    momentum: Fraction = 0.9
    nesterov: bool = True
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    schedule: Literal["one_cycle", "cosine", "constant"] = "one_cycle"
    warmup: Fraction = 0.3
    label_smoothing: Fraction = 0.0
    device: Annotated[str, Field(pattern=r"^(auto|cpu|mps|cuda(:\d+)?)$")] = "auto"
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    threads: PositiveInt | None = None


class FeaturesSpec(Spec):
    """What is known of each function before training.

    Attributes:
        fim: compute Fisher spectra of the untrained network (else output features alone).
        fisher: how labels enter the Fisher matrix: sampled from the model's predictive
            distribution (``mc``), all of them weighted by it (``exact``), or the true ones
            (``empirical``).
        loss: what the network's outputs mean: logits, or the mean of a normal distribution of
            variance 1 (the loss is half the squared error; labels are one-hot targets).
        label_smoothing: of the true labels; ``empirical`` alone has any.
        weight_sharing: how a layer used at many positions of an image is treated: positions as
            if they were images of their own (``expand``), or summed up first (``reduce``).
        statistics: that batch normalization works with: of the batch, or the running ones.
        batch_size: training images of the one batch that the Fisher matrix is computed on.
        quantiles: numbers that each layer's spectrum is summarized as.
        precision: of the network while its Fisher matrix is computed. In float32 small
            eigenvalues are lost in rounding and counted as null; float64 costs a small network
            little and a convolutional one on a CPU several times the time.
        subset: how many functions get a Fisher spectrum: the baselines and others, spread out
            over the output features; None means all of them.
        seed: of the network's initial weights and of the sampled labels.
    """

    fim: bool = True
    fisher: Literal["mc", "exact", "empirical"] = "mc"
    loss: Literal["cross_entropy", "mse"] = "cross_entropy"
    label_smoothing: Fraction = 0.0
    weight_sharing: Literal["expand", "reduce"] = "expand"
    statistics: Literal["batch", "running"] = "batch"
    batch_size: PositiveInt = 128
    quantiles: Annotated[int, Field(ge=8)] = 128
    precision: Literal["float32", "float64"] = "float32"
    subset: PositiveInt | None = None
    seed: int = 0


class EmbeddingSpec(Spec):
    """The embedding, from features to points.

    Attributes:
        name: principal components of each feature block, scaled by rank (``pca``), or the
            published two dimensions of UMAP (``umap``; needs the extra ``umap``).
        outputs, fim: for ``pca``: components of the output features and of the Fisher spectra.
        seed: for ``umap``.
    """

    name: Literal["pca", "umap"] = "pca"
    outputs: Annotated[int, Field(ge=1, le=64)] = 6
    fim: Annotated[int, Field(ge=1, le=64)] = 6
    seed: int = 0


class StrategySpec(Spec):
    """What chooses once the start of a search is over.

    Attributes:
        name: a surrogate and an acquisition function (``model``), regularized evolution
            (``evolution``), or nothing but chance (``random``).
        population: for ``evolution``: functions alive.
        tournament: for ``evolution``: functions that compete to be the parent.
    """

    name: Literal["model", "evolution", "random"] = "model"
    population: PositiveInt = 20
    tournament: PositiveInt = 5


class SurrogateSpec(Spec):
    """The model of value over the embedding.

    Attributes:
        name: a Gaussian process (``gp``), nearest neighbours (``knn``) or a random forest.
        targets: what the model sees: values with the lower tail winsorized, ranks mapped to normal
            quantiles, or values standardized.
        neighbours: for ``knn``.
        trees: for ``forest``.
    """

    name: Literal["gp", "knn", "forest"] = "gp"
    targets: Literal["winsorized", "rank_normal", "standardized"] = "winsorized"
    neighbours: PositiveInt = 3
    trees: PositiveInt = 100


class AcquisitionSpec(Spec):
    """What is maximized over the candidates to choose the next one.

    Attributes:
        name: max-value entropy (GIBBON), upper confidence bound, logarithm of the expected
            improvement, of the same with noise in the incumbent (``log_nei``) or of the
            probability of improvement, one draw of the posterior (``thompson``), or the mean alone
            (``greedy``).
        beta: for ``ucb``: mean + beta · standard deviation, in units of the warped target.
    """

    name: Literal[
        "max_value_entropy", "ucb", "log_ei", "log_nei", "log_pi", "thompson", "greedy"
    ] = "max_value_entropy"
    beta: Annotated[float, Field(ge=0)] = 3.0


class ParameterSpec(Spec):
    """What one value of a study file is searched among: a range, or choices.

    Attributes:
        low, high: ends of the range, both included; of whole numbers where both are.
        log: search the logarithm.
        step: distance of neighbouring values.
        choices: of a category.
    """

    low: int | float | None = None
    high: int | float | None = None
    log: bool = False
    step: int | float | None = None
    choices: tuple[bool | int | float | str, ...] = ()

    @model_validator(mode="after")
    def _range_or_choices(self) -> ParameterSpec:
        if self.choices:
            if not (self.low is self.high is self.step is None) or self.log:
                raise ValueError("expected a range (low, high) or choices, got both")
            if len(set(self.choices)) < max(2, len(self.choices)):
                raise ValueError(f"expected at least two different choices, got {self.choices}")
            return self
        if self.low is None or self.high is None:
            raise ValueError("expected low and high, or choices")
        if not self.low < self.high:
            raise ValueError(f"expected low < high, got low = {self.low}, high = {self.high}")
        if self.log and (self.low <= 0 or self.step is not None):
            raise ValueError("expected low > 0 and no step where log = true")
        if self.step is not None and not 0 < self.step <= self.high - self.low:
            raise ValueError(f"expected 0 < step <= high - low, got step = {self.step}")
        return self

    def holds(self, value: object) -> bool:
        """Tell whether a value is one of those searched among."""
        if self.choices:
            return value in self.choices
        if isinstance(value, bool) or not isinstance(value, int | float):
            return False
        return float(self.low or 0) <= value <= float(self.high or 0)


class WarmStartSpec(Spec):
    """What other tasks are learnt from.

    Attributes:
        sources: benchmarks (names or files) and studies (names or ``.toml`` files).
        first: how many of the functions that are best in them are evaluated first.
    """

    sources: tuple[str, ...] = ()
    first: Annotated[int, Field(ge=0)] = 5


class PrunerSpec(Spec):
    """When a trial is stopped early.

    Attributes:
        startup_trials: trials that must have finished before any is pruned.
        warmup_epochs: epochs of each trial before it can be pruned.
        percentile: for ``percentile``: keep trials in the best that many per cent.
    """

    name: Literal["none", "median", "percentile"] = "none"
    startup_trials: Annotated[int, Field(ge=0)] = 10
    warmup_epochs: Annotated[int, Field(ge=0)] = 2
    percentile: Annotated[float, Field(gt=0, le=100)] = 50.0


class StopSpec(Spec):
    """Ending a search before all its trials.

    Attributes:
        improvement: end when no function that is left is expected to improve on the best value by
            as much (a fraction: 0.001 is a tenth of a point of accuracy); None never does.
        least: finished trials before that.
    """

    improvement: Annotated[float, Field(gt=0)] | None = None
    least: PositiveInt = 30


class ConfirmSpec(Spec):
    """Training the best functions anew, with fresh seeds, and reading the test set once.

    Attributes:
        top: the best functions of the search.
        baselines: functions that they are compared with.
        seeds: fresh seeds for each of them; 0 leaves the confirmation out.
    """

    top: PositiveInt = 3
    baselines: tuple[str, ...] = ("relu(x)", "gelu(x)", "swish(x)")
    seeds: Annotated[int, Field(ge=0)] = 5


SEARCHED = ("training.", "model.options.")
"""Where the parameters of a study file are."""
_NOT_SEARCHED = frozenset({"device", "precision", "threads"})  # they change no result


class StudySpec(Spec):
    """One study: where it searches, on what, and how.

    Attributes:
        trials: finished trials (complete or pruned) after which the study ends.
        initial: random functions after the baselines, before the surrogate proposes.
        candidates: all functions of the space (``catalogue``), or whatever is met from tree to tree
            (``trees``: by output features alone); ``auto`` lists spaces of up to three million
            expressions.
        storage: any Optuna storage URL, or a path: ``.db`` is SQLite, other endings a journal
            file; default: ``runs/<name>/journal.log``.
        max_retries: how often a function is tried again after an infrastructure failure.
        parameters: values of this file that are searched together with the function, by dotted key
            (``"training.learning_rate"``, ``"model.options.width"``); baselines are evaluated with
            the value that stands in the file.
    """

    name: Annotated[str, Field(min_length=1, pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
    description: str = ""
    space: str = "act_bench"
    trials: PositiveInt = 50
    initial: Annotated[int, Field(ge=0)] = 2
    candidates: Literal["auto", "catalogue", "trees"] = "auto"
    seed: int = 0
    storage: str | None = None
    max_retries: Annotated[int, Field(ge=0)] = 2
    model: ModelSpec
    data: DataSpec
    training: TrainingSpec = TrainingSpec()
    features: FeaturesSpec = FeaturesSpec()
    strategy: StrategySpec = StrategySpec()
    embedding: EmbeddingSpec = EmbeddingSpec()
    surrogate: SurrogateSpec = SurrogateSpec()
    acquisition: AcquisitionSpec = AcquisitionSpec()
    warm_start: WarmStartSpec = WarmStartSpec()
    pruner: PrunerSpec = PrunerSpec()
    stop: StopSpec = StopSpec()
    confirm: ConfirmSpec = ConfirmSpec()
    parameters: dict[str, ParameterSpec] = {}

    @model_validator(mode="after")
    def _parameters_are_keys(self) -> StudySpec:
        for key, one in self.parameters.items():
            table, _, name = key.rpartition(".")
            if table == "training":
                known = sorted(set(TrainingSpec.model_fields) - _NOT_SEARCHED)
                if name not in known:
                    raise ValueError(
                        f"parameters: {key!r} is nothing to search; of the training: "
                        f"{', '.join(known)}"
                    )
            elif table != "model.options":
                raise ValueError(
                    f"parameters: expected 'training.NAME' or 'model.options.NAME', got {key!r}"
                )
            elif name not in self.model.options:
                raise ValueError(
                    f"parameters: give {name} a value in [model.options], which the baselines are "
                    "evaluated with"
                )
            if not one.holds(self.defaults[key]):
                raise ValueError(
                    f"parameters: {key} = {self.defaults[key]!r} in this file, which the baselines "
                    "are evaluated with, is not among what is searched"
                )
            for value in one.choices or (one.low, one.high):
                self.with_settings({key: value})
        if self.parameters and self.strategy.name != "model":
            raise ValueError(
                f"parameters: only the strategy 'model' searches them, not {self.strategy.name!r}"
            )
        return self

    @property
    def defaults(self) -> dict[str, Any]:
        """Values of the searched parameters that stand in the file."""
        return {
            key: self.model.options[name] if table == "model.options" else getattr(training, name)
            for training in (self.training,)
            for key in self.parameters
            for table, _, name in (key.rpartition("."),)
        }

    def with_settings(self, settings: Mapping[str, Any]) -> StudySpec:
        """Return the study with these values at dotted keys, and nothing to search.

        Raises:
            ValueError: a value is none that its key can have.
        """
        training = self.training.model_dump()
        options = dict(self.model.options)
        for key, value in settings.items():
            table, _, name = key.rpartition(".")
            (options if table == "model.options" else training)[name] = value
        return self.model_copy(
            update={
                "parameters": {},
                "training": TrainingSpec.model_validate(training),
                "model": ModelSpec(name=self.model.name, options=options),
            }
        )
