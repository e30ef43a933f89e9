"""The format of a study file."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, field_serializer, model_validator

from bo_act.errors import SpecError
from bo_act.metrics import Metric
from bo_act.specs.base import Count, PositiveFloat, PositiveInt, Seed, Spec
from bo_act.specs.metric import MetricSpec
from bo_act.specs.pruner import PrunerSpec
from bo_act.specs.search import (
    AcquisitionSpec,
    EmbeddingSpec,
    FeaturesSpec,
    StrategySpec,
    SurrogateSpec,
    WarmStartSpec,
)
from bo_act.specs.task import ActivationSpec, AugmentationSpec, DataSpec, ModelSpec, TrainingSpec
from bo_act.urls import shown_url


class ParameterSpec(Spec):
    """Search range or choices of one value of a study file.

    Attributes:
        low, high: ends of the range, both included; integers if both are.
        log: search the logarithm.
        step: distance of neighbouring values.
        choices: of a categorical value.
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
        """Tell whether a value is in the range or choices."""
        if self.choices:
            return value in self.choices
        if isinstance(value, bool) or not isinstance(value, int | float):
            return False
        low, high = self.low or 0, self.high or 0
        whole = isinstance(low, int) and isinstance(high, int)
        step = self.step or (1 if whole else None)
        steps = 0.0 if step is None else (value - low) / step
        return low <= value <= high and abs(steps - round(steps)) < 1e-8


class StopSpec(Spec):
    """Ending a search before all its trials.

    Attributes:
        improvement: end when no remaining function is expected to improve the best value by this
            much, in stored units (0.001 of accuracy is a tenth of a point); None never ends.
        least: finished trials before that.
    """

    improvement: Annotated[float, Field(gt=0)] | None = None
    least: PositiveInt = 30


class ConfirmSpec(Spec):
    """Training the best functions again with fresh seeds, and evaluating the test set once.

    Attributes:
        top: the best functions of the search.
        baselines: functions for comparison.
        seeds: fresh seeds for each of them; 0 leaves the confirmation out.
    """

    top: PositiveInt = 3
    baselines: tuple[str, ...] = ("relu(x)", "gelu(x)", "swish(x)")
    seeds: Count = 5


ActivationName = Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")]

SEARCHED = ("training.", "model.options.")
"""Where the parameters of a study file are."""


# They change results only by rounding.
_NOT_SEARCHED = frozenset(
    {"device", "precision", "threads", "channels_last", "compile", "deterministic", "micro_batch"}
)


class StudySpec(Spec):
    """One study: space, task and search.

    Attributes:
        trials: finished trials (complete or pruned) after which the study ends.
        initial: random functions after the baselines, before the surrogate proposes.
        candidates: all functions of the space (``catalogue``), or local search over expression
            trees (``trees``, with output features only); ``auto`` lists spaces of up to three
            million expressions.
        storage: any Optuna storage URL, or a path: ``.log`` is a journal file, other endings
            SQLite; default: ``runs/<name>/study.db``. A dump of this spec has no password.
        max_retries: how often a function is tried again after an infrastructure failure.
        activations: names of several activations of the network, such as stages, each with its
            own function; the model file calls ``activation("NAME")``. None means one function in
            all places.
        callbacks: callbacks to run after each trial: ``tensorboard``, ``wandb``, ``mlflow``, or a
            function in a file, ``"my_callback.py:log"``.
        objective: your own training function, ``"my_train.py:objective"``, instead of the built-in
            one; network and data are then optional.
        metric: default: accuracy, or the objective's value, maximized.
        grace: seconds without a heartbeat after which a worker on another machine or in another
            container counts as dead.
        parameters: values of this file to search jointly with the function, by dotted key
            (``"training.learning_rate"``, ``"model.options.width"``); baselines are evaluated with
            the values in the file.

    Examples:
        >>> spec = StudySpec.model_validate(
        ...     {"name": "mine", "model": {"name": "mlp"}, "data": {"name": "digits"}, "trials": 20}
        ... )
        >>> spec.training.epochs > 0
        True
    """

    # Validation errors would show the password in the input.
    model_config = ConfigDict(hide_input_in_errors=True)

    name: Annotated[str, Field(min_length=1, pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
    description: str = ""
    space: str = "act_bench"
    trials: PositiveInt = 50
    initial: Count = 2
    candidates: Literal["auto", "catalogue", "trees"] = "auto"
    seed: Seed = 0
    storage: str | None = Field(default=None, repr=False)
    max_retries: Count = 2
    grace: PositiveFloat = 120.0
    objective: Annotated[str, Field(pattern=r"^.+\.py:[A-Za-z_]\w*$")] | None = None
    metric: MetricSpec = MetricSpec()
    model: ModelSpec | None
    data: DataSpec | None
    activation: ActivationSpec = ActivationSpec()
    augmentation: AugmentationSpec = AugmentationSpec()
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
    activations: tuple[ActivationName, ...] = ()
    callbacks: tuple[str, ...] = ()
    parameters: dict[str, ParameterSpec] = Field(default_factory=dict)

    @field_serializer("storage")
    def _without_password(self, storage: str | None) -> str | None:
        return None if storage is None else shown_url(storage)

    @model_validator(mode="after")
    def _metric_is_measured(self) -> StudySpec:
        try:
            metric = self.measured
        except SpecError as error:
            raise ValueError(str(error)) from error
        ends = (self.pruner.lower, self.pruner.upper)
        if metric.in_percent and any(end is not None and not 0 <= end <= 1 for end in ends):
            raise ValueError(
                f"pruner: expected lower and upper from 0 to 1, as {metric.name} is a fraction"
            )
        return self

    @model_validator(mode="after")
    def _pruners_see_own_trials(self) -> StudySpec:
        if self.warm_start.as_trials and self.pruner.name != "none":
            raise ValueError(
                "warm_start.as_trials: a pruner would count trials of sources as the study's own; "
                "leave either out"
            )
        return self

    @model_validator(mode="after")
    def _activations_are_searched_together(self) -> StudySpec:
        if len(set(self.activations)) < len(self.activations):
            raise ValueError(f"activations: expected each name once, got {self.activations}")
        if not self.activations:
            return self
        if self.strategy.name != "model":
            raise ValueError(
                f"activations: only the strategy 'model' searches several together, not "
                f"{self.strategy.name!r}"
            )
        return self

    @model_validator(mode="after")
    def _lists_are_of_single_functions(self) -> StudySpec:
        searched = "activations" if self.activations else "parameters" if self.parameters else ""
        if searched and self.acquisition.needs_list:
            name = "per_second" if self.acquisition.per_second else repr(self.acquisition.name)
            raise ValueError(
                f"acquisition: {name} needs a list of all candidates, and there is none when "
                f"{searched} are searched; choose another, such as 'log_ei'"
            )
        return self

    @model_validator(mode="before")
    @classmethod
    def _objectives_do_without(cls, content: Any) -> Any:
        if not isinstance(content, dict) or {"model", "data"} & content.keys():
            return content
        return content | ({"model": None, "data": None} if content.get("objective") else {})

    @model_validator(mode="after")
    def _there_is_something_to_train(self) -> StudySpec:
        missing = [name for name in ("model", "data") if getattr(self, name) is None]
        if len(missing) == 1 or (missing and self.objective is None):
            raise ValueError(f"missing key {missing[0]!r}")
        return self

    @model_validator(mode="after")
    def _augmentation_fits(self) -> StudySpec:
        if self.data is None:
            return self
        in_folders = self.data.in_folders
        wrong = self.augmentation.misfit(in_folders=in_folders)
        if wrong:
            kind, other = ("folders", "memory") if in_folders else ("memory", "folders")
            raise ValueError(
                f"augmentation.{wrong} is for images in {other}, but {self.data.name!r} has them "
                f"in {kind}; leave it out"
            )
        return self

    @model_validator(mode="after")
    def _parameters_are_keys(self) -> StudySpec:
        for key, parameter in self.parameters.items():
            table, _, name = key.rpartition(".")
            if table == "training":
                known = sorted(set(TrainingSpec.model_fields) - _NOT_SEARCHED)
                if name not in known:
                    raise ValueError(
                        f"parameters: {key!r} cannot be searched; training parameters: "
                        f"{', '.join(known)}"
                    )
            elif table != "model.options":
                raise ValueError(
                    f"parameters: expected 'training.NAME' or 'model.options.NAME', got {key!r}"
                )
            elif name not in self._options:
                raise ValueError(
                    f"parameters: give {name} a value in [model.options] for the baselines"
                )
            if not parameter.holds(self.defaults[key]):
                raise ValueError(
                    f"parameters: {key} = {self.defaults[key]!r} in this file, the baselines' "
                    "value, is outside the searched values"
                )
            for value in parameter.choices or (parameter.low, parameter.high):
                self.with_settings({key: value})
        if self.parameters and self.strategy.name != "model":
            raise ValueError(
                f"parameters: only the strategy 'model' searches them, not {self.strategy.name!r}"
            )
        return self

    @property
    def measured(self) -> Metric:
        """The metric of this study."""
        return self.metric.measured(own=self.objective is not None)

    @property
    def _options(self) -> dict[str, Any]:
        return {} if self.model is None else self.model.options

    @property
    def defaults(self) -> dict[str, Any]:
        """The file's values of the searched parameters."""
        return {
            key: self._options[name] if table == "model.options" else getattr(training, name)
            for training in (self.training,)
            for key in self.parameters
            for table, _, name in (key.rpartition("."),)
        }

    def with_settings(self, settings: Mapping[str, Any]) -> StudySpec:
        """Return the study with these values at dotted keys, and without searched parameters.

        Raises:
            ValueError: a value is invalid for its key.
        """
        training = self.training.model_dump()
        options = dict(self._options)
        for key, value in settings.items():
            table, _, name = key.rpartition(".")
            (options if table == "model.options" else training)[name] = value
        return self.model_copy(
            update={
                "parameters": {},
                "training": TrainingSpec.model_validate(training),
                "model": self.model and self.model.model_copy(update={"options": options}),
            }
        )
