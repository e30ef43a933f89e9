"""Loading a study for its report, with its sampler and features if possible."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import optuna
from optuna.trial import FrozenTrial

from bo_act.activations.expressions import Expression, canonical, parse
from bo_act.errors import BoActError, ExpressionError
from bo_act.events import Events
from bo_act.features.table import FeatureTable
from bo_act.metrics import Metric
from bo_act.specs import StudySpec
from bo_act.study.running.worker import compute_candidate_features, make_sampler
from bo_act.study.sampling.recorded import sampler_of
from bo_act.study.sampling.sampler import ActivationSampler
from bo_act.study.storage.metric import metric_of
from bo_act.study.storage.opening import load_study
from bo_act.study.storage.trials import own_trials
from bo_act.tasks.task import Task


@dataclass(frozen=True)
class LoadedStudy:
    """A study with its sampler and features, if available.

    Attributes:
        study: any study with bo-act functions.
        spec: of its file; None for a study of a program.
        sampler: has the embedding and the surrogate.
        features: of the space's functions.
        lacking: why there is no sampler, or ``""``.
    """

    study: optuna.Study
    spec: StudySpec | None = None
    sampler: ActivationSampler | None = None
    features: FeatureTable | None = None
    lacking: str = ""

    @property
    def activations(self) -> tuple[str, ...]:
        """Names of a configuration's activations; ``("",)`` for one."""
        if self.sampler is not None:
            return self.sampler.activations
        names: dict[str, None] = {}
        for trial in own_trials(self.study):
            for key in trial.user_attrs:
                name, _, last = key.rpartition(".")
                if last == "activation":
                    names[name] = None
        return tuple(name for name in names if name) or ("",)

    @property
    def trials(self) -> list[FrozenTrial]:
        """The study's own trials, without those of its sources."""
        return own_trials(self.study)

    @cached_property
    def metric(self) -> Metric:
        """The metric."""
        given = self.sampler.metric if self.sampler else None
        return given or metric_of(self.study)

    def functions(self, trial: FrozenTrial) -> tuple[str, ...]:
        """Return the texts of a trial's functions, one per place; empty if it has none."""
        texts = []
        for name in self.activations:
            text = trial.user_attrs.get(f"{name}.activation" if name else "activation")
            if text is None:
                return ()
            texts.append(str(text))
        return tuple(texts)


def load_for_report(spec: StudySpec, events: Events | None = None) -> LoadedStudy:
    """Open the study of a file, and load the data of its report.

    If data, network or features are missing, the report omits them and says why.

    Raises:
        StorageError: there is no such study.
    """
    study = load_study(spec)
    try:
        task = Task.load(spec)
        features = compute_candidate_features(task, events or Events())
        return LoadedStudy(study, spec, make_sampler(task, features, study), features)
    except BoActError as error:
        return LoadedStudy(study, spec, lacking=str(error))


def named_for_report(study: optuna.Study) -> LoadedStudy:
    """Return the study of a program, with its sampler if the study records enough of it."""
    sampler, lacking = sampler_of(study)
    return LoadedStudy(study, sampler=sampler, lacking=lacking)


def readable(text: str) -> Expression | None:
    """Return the canonical expression of a text, or None."""
    try:
        return canonical(parse(text))
    except ExpressionError:
        return None
