"""Callbacks to run after each trial: TensorBoard, Weights & Biases, MLflow, your own.

A callback is ``callback(study, trial)``, as in ``optuna.Study.optimize``; ``trial`` is frozen. The
clients are called directly: the classes of optuna-integration need TensorFlow (TensorBoard) or are
deprecated, and log one number per trial; these log whole training curves.
"""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState

from bo_act.dependencies.extras import has_extra, require_extra
from bo_act.errors import SpecError, nearest
from bo_act.specs import StudySpec
from bo_act.study.running.dashboard_notes import DashboardNote
from bo_act.study.storage.metric import metric_of
from bo_act.user_code.failures import USERS, one_line
from bo_act.user_code.files import load_function

Callback = Callable[[optuna.Study, FrozenTrial], Any]


class Callbacks:
    """Several callbacks as one that never fails.

    If a callback raises, bo-act warns once and still calls it after later trials.

    Args:
        named: (name in messages, callback) pairs.
    """

    def __init__(self, named: Sequence[tuple[str, Callback]]) -> None:
        self._named = list(named)
        self._reported: set[str] = set()

    @classmethod
    def of(cls, spec: StudySpec, own: Sequence[Callback] = ()) -> Callbacks:
        """Make the callbacks of a study file, and add the caller's own.

        Raises:
            SpecError: a name is unknown, or a file cannot be used.
            MissingExtraError: a package is missing.
        """
        named = [(name, _named(name, spec)) for name in spec.callbacks]
        named += [(getattr(call, "__name__", type(call).__name__), call) for call in own]
        if has_extra("dashboard"):
            named.append(("the dashboard's note", DashboardNote()))
        return cls(named)

    def __call__(self, study: optuna.Study, trial: FrozenTrial) -> None:
        """Call all of them for a finished trial."""
        for name, callback in self._named:
            try:
                callback(study, trial)
            except USERS as error:  # the trial is saved and the study continues
                if name not in self._reported:
                    self._reported.add(name)
                    warnings.warn(
                        f"the callback {name} failed at trial {trial.number} (warned once; bo-act "
                        f"still calls it after later trials): {one_line(error)}",
                        stacklevel=2,
                    )


def _named(name: str, spec: StudySpec) -> Callback:
    if name in _MAKERS:
        require_extra(name, f"the callback {name!r}")
        return _MAKERS[name](Path("runs") / spec.name)
    if ".py:" in name:
        return load_function(
            name, key="callbacks", expected="def log(study, trial)", error=SpecError
        )[1]
    raise SpecError(
        f"callbacks: expected {', '.join(map(repr, _MAKERS))} or 'FILE.py:FUNCTION', "
        f"got {name!r}{nearest(name, _MAKERS)}"
    )


def _curves(study: optuna.Study, trial: FrozenTrial) -> Iterator[tuple[str, int, float]]:
    """Yield (name, epoch, number) of a trial's training curves; the search's metric first."""
    name = f"validation {metric_of(study).name}"
    for epoch, value in sorted(trial.intermediate_values.items()):
        yield name, epoch, value
    for epoch, loss in enumerate(trial.user_attrs.get("train_loss", ())):
        yield "train loss", epoch, loss


def _settings(trial: FrozenTrial) -> dict[str, Any]:
    return {"activation": str(trial.user_attrs.get("activation", "")), **trial.params}


def _results(trial: FrozenTrial) -> dict[str, float]:
    """Return a trial's value and training time."""
    seconds = trial.user_attrs.get("seconds")
    time = {} if seconds is None else {"seconds": float(seconds)}
    return time if trial.value is None else {"value": trial.value, **time}


def tensorboard(folder: Path) -> Callback:
    """Write each trial as a run ``<folder>/tensorboard/trial-0007`` with curves and settings."""

    def write(study: optuna.Study, trial: FrozenTrial) -> None:
        from torch.utils.tensorboard import SummaryWriter
        from torch.utils.tensorboard.summary import hparams

        run = folder / "tensorboard" / f"trial-{trial.number:04}"
        with SummaryWriter(str(run)) as writer:
            for name, epoch, number in _curves(study, trial):
                writer.add_scalar(name, number, epoch)
            for name, number in _results(trial).items():
                writer.add_scalar(name, number, trial.number)
            writer.add_text("activation", f"`{_settings(trial)['activation']}`", trial.number)
            for part in hparams(_settings(trial), _results(trial)):
                writer.file_writer.add_summary(part)

    return write


def wandb(folder: Path) -> Callback:
    """Log each trial as a run in the project ``bo-act`` (or $WANDB_PROJECT), grouped by study."""

    def log(study: optuna.Study, trial: FrozenTrial) -> None:
        import wandb as client

        folder.mkdir(parents=True, exist_ok=True)
        run = client.init(
            project=os.environ.get("WANDB_PROJECT", "bo-act"),
            group=study.study_name,
            name=f"{study.study_name}-{trial.number:04}",
            config=_settings(trial) | {"trial": trial.number},
            dir=str(folder),
            reinit="finish_previous",
            settings=client.Settings(silent=True, console="off"),
        )
        try:
            epochs: dict[int, dict[str, float]] = {}
            for name, epoch, number in _curves(study, trial):
                epochs.setdefault(epoch, {})[name] = number
            for epoch, numbers in sorted(epochs.items()):
                run.log(numbers, step=epoch)
            run.summary.update(_results(trial) | {"state": trial.state.name})
        finally:
            run.finish()

    return log


def mlflow(folder: Path) -> Callback:
    """Log each trial as a run of the experiment of the study's name.

    In $MLFLOW_TRACKING_URI, else in ``<folder>/mlflow.db``.
    """

    def log(study: optuna.Study, trial: FrozenTrial) -> None:
        from mlflow.entities import Metric, Param
        from mlflow.tracking import MlflowClient

        folder.mkdir(parents=True, exist_ok=True)
        where = os.environ.get("MLFLOW_TRACKING_URI", f"sqlite:///{folder / 'mlflow.db'}")
        client = MlflowClient(tracking_uri=where)
        known = client.get_experiment_by_name(study.study_name)
        experiment = known.experiment_id if known else client.create_experiment(study.study_name)
        begun = trial.datetime_start
        at = int(begun.timestamp() * 1000) if begun else 0
        run = client.create_run(experiment, at, run_name=f"trial-{trial.number:04}").info.run_id
        numbers = [
            *_curves(study, trial),
            *((k, trial.number, v) for k, v in _results(trial).items()),
        ]
        client.log_batch(
            run,
            metrics=[Metric(_plain(name), number, at, step) for name, step, number in numbers],
            params=[Param(key, str(value)[:6000]) for key, value in _settings(trial).items()],
        )
        failed = trial.state == TrialState.FAIL
        client.set_terminated(run, "FAILED" if failed else "FINISHED")

    return log


def _plain(name: str) -> str:
    """Return a name that MLflow accepts; it refuses all other characters."""
    return re.sub(r"[^\w.\-: /]", "_", name)


_MAKERS: dict[str, Callable[[Path], Callback]] = {
    "tensorboard": tensorboard,
    "wandb": wandb,
    "mlflow": mlflow,
}
"""Name of a callback, and of its extra → factory, given a folder."""
