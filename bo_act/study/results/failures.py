"""Failures of a study, grouped by reason, and their meaning for its results."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence

from optuna.trial import FrozenTrial, TrialState

from bo_act.study.storage.owner import DEATHS
from bo_act.study.storage.trials import is_diverged, is_feasible, measured
from bo_act.tasks.failures import Failed, FailureGroup, group
from bo_act.training.outcomes import DIVERGED
from bo_act.user_code.failures import Failure

_DIED = "the process died, and another process took the trial over"
_GIVEN_UP = re.compile(r"\d+ processes died over it")


def failures(trials: Sequence[FrozenTrial]) -> list[FailureGroup]:
    """Return the failures of a search.

    Args:
        trials: a study's own.
    """
    return group("search", [failed for trial in trials for failed in _of_trial(trial)])


def failure_of_trial(trial: FrozenTrial) -> Failure | None:
    """Return why a trial failed or was given back, or None.

    A diverged trial, whose NaN Optuna counts as a failure, has only the reason it records.
    """
    failure = Failure.read(trial.user_attrs.get("failure"))
    if trial.state == TrialState.FAIL and failure is None and not is_diverged(trial):
        return Failure("", "it failed for an unknown reason")
    return failure if trial.state in (TrialState.FAIL, TrialState.RUNNING) else None


def _of_trial(trial: FrozenTrial) -> Iterator[Failed]:
    text = str(trial.user_attrs.get("activation", ""))
    deaths = int(trial.system_attrs.get(DEATHS, 0))
    failure = failure_of_trial(trial)
    given_up = failure is not None and not failure.type and _GIVEN_UP.fullmatch(failure.message)
    if deaths and not given_up:
        yield Failure("", _DIED, blame="machine"), text, trial.number, deaths
    if failure is not None:
        yield failure, text, trial.number, 1


# --- meaning --------------------------------------------------------------------------------


def state_of(trials: Iterable[FrozenTrial]) -> str:
    """Return the state of a function in a search: the best state of its trials.

    Returns:
        ``complete``, ``diverged``, ``pruned``, ``running``, ``failed``, or ``""`` without a trial.
    """
    states = {_state(trial) for trial in trials}
    order = ("complete", "diverged", "pruned", "running", "failed")
    return next((state for state in order if state in states), "")


def _state(trial: FrozenTrial) -> str:
    if is_diverged(trial):
        return DIVERGED
    return {"fail": "failed", "waiting": "running"}.get(name := trial.state.name.lower(), name)


def baseline_notes(trials: Sequence[FrozenTrial], baselines: Iterable[str]) -> list[str]:
    """Return a sentence for each baseline without a value in a search.

    Args:
        trials: a study's own.
        baselines: texts of functions, besides the baselines of the search itself.
    """
    by_text: dict[str, list[FrozenTrial]] = {text: [] for text in baselines}
    for trial in trials:
        text = str(trial.user_attrs.get("activation", ""))
        if trial.user_attrs.get("proposal", {}).get("by") == "baseline":
            by_text.setdefault(text, [])
        if text in by_text:
            by_text[text].append(trial)
    notes = []
    for text, attempts in by_text.items():
        state = state_of(attempts)
        if state == "failed":
            reason = failure_of_trial(attempts[-1])
            notes.append(f"The baseline {text} failed in the search, and has no value: {reason}.")
        elif state == DIVERGED:
            notes.append(f"The baseline {text} diverged in the search.")
    return notes


def nothing_found(trials: Sequence[FrozenTrial], *, objective: bool = False) -> str:
    """Return why a study has no best function, with advice; ``""`` if it has one.

    Args:
        trials: a study's own.
        objective: whether the values come from a user's training function.
    """
    states = [_state(trial) for trial in trials]
    done = measured(trials)
    if done and not any(map(is_feasible, done)):
        names = {name for trial in done for name, value in trial.constraints.items() if value > 0}
        every = f"All {len(done)} functions violate" if len(done) > 1 else "The only one violates"
        return f"{every} a constraint ({', '.join(sorted(names))}), so none is the best."
    if "complete" in states:
        return ""
    kinds = {
        kind: count for kind in ("diverged", "pruned", "failed") if (count := states.count(kind))
    }
    running = states.count("running")
    if not kinds:
        more = f" {running} {'is' if running == 1 else 'are'} in training." if running else ""
        return f"No function has been evaluated yet.{more}"
    advice = {
        "diverged": "return a finite value" if objective else _divergence(trials),
        "pruned": "let the pruner wait longer (pruner.startup_trials, pruner.warmup_epochs)",
        "failed": "see the failures",
    }
    if len(kinds) == 1 and not running:
        ((kind, count),) = kinds.items()
        verb = {"pruned": "were pruned"}.get(kind, kind)
        every = "The only function" if count == 1 else f"All {count} functions"
        verb = verb.replace("were", "was") if count == 1 else verb
        if kind == "failed":
            every = "The only trial" if count == 1 else f"All {count} trials"
        how = _when(trials, objective=objective) if kind == DIVERGED else ""
        return f"{every} {verb}{how}, so there is no result: {advice[kind]}."
    counts = ", ".join(f"{count} {kind}" for kind, count in kinds.items())
    more = f", {running} in training" if running else ""
    return f"No function has a value: {counts}{more}; {'; '.join(advice[kind] for kind in kinds)}."


def _when(trials: Sequence[FrozenTrial], *, objective: bool) -> str:
    """Return when the diverged training runs diverged, in brackets."""
    diverged = [trial for trial in trials if is_diverged(trial)]
    if objective:
        return " (the values are not finite)"
    collapsed = sum(bool(trial.user_attrs.get("collapsed")) for trial in diverged)
    if collapsed == len(diverged):
        return " (accuracy and loss stayed at chance)"
    # Each finished epoch has a loss.
    last = max(
        len(trial.user_attrs.get("train_loss", ()))
        for trial in diverged
        if not trial.user_attrs.get("collapsed")
    )
    return f" (the training loss was not finite by epoch {last + 1})"


def _divergence(trials: Sequence[FrozenTrial]) -> str:
    collapsed = any(t.user_attrs.get("collapsed") for t in trials if is_diverged(t))
    other = "training.collapse_epochs" if collapsed else "training.gradient_clip"
    return f"lower training.learning_rate, or set {other}"
