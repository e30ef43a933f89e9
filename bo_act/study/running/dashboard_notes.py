"""The note of a study in optuna-dashboard: the best function so far, its formula and its graph.

The dashboard's Markdown has neither images from data URIs nor mathematics, so the graph is drawn
in characters and the formula is plain text.
"""

from __future__ import annotations

import optuna
from optuna.trial import FrozenTrial, TrialState

from bo_act.activations.expressions import parse
from bo_act.activations.formulas import plain
from bo_act.features.function_summary import function_summary
from bo_act.study.results.summary import best_value
from bo_act.study.storage.metric import metric_of

_WIDTH, _HEIGHT = 64, 16  # characters


class DashboardNote:
    """A callback that rewrites the note after each new best trial."""

    def __call__(self, study: optuna.Study, trial: FrozenTrial) -> None:
        """Write the note if this trial is the best."""
        from optuna_dashboard import save_note

        # A later trial with the same value is not better.
        if trial.state != TrialState.COMPLETE or trial.value != best_value(study):
            return
        save_note(study, note(study, trial))


def note(study: optuna.Study, trial: FrozenTrial) -> str:
    """Return the note of a study, given its best trial, in Markdown."""
    lines = [f"# {study.study_name}", ""]
    metric = metric_of(study)
    best = f"Best so far: **{metric.text(trial.value)}** ({metric.name}), trial {trial.number}."
    lines += [best, ""]
    for label, text in _functions(trial).items():
        lines += [f"{label}`{text}`", "", "```", f"f(x) = {plain(parse(text))}", ""]
        lines += [*_graph(text), "```", ""]
    settings = {key: value for key, value in trial.params.items() if "." in key}
    lines += [f"- `{key}` = {value}" for key, value in settings.items()]
    return "\n".join(lines).rstrip() + "\n"


def _functions(trial: FrozenTrial) -> dict[str, str]:
    """Return a trial's functions by their labels; a single function has none."""
    ending = ".activation"
    several = {
        f"{key.removesuffix(ending)}: ": text
        for key, text in trial.user_attrs.items()
        if key.endswith(ending)
    }
    return several or {"": trial.user_attrs["activation"]}


def _graph(text: str) -> list[str]:
    # No braille: browsers draw its dots in another font, of another width.
    import plotext

    graph = function_summary(parse(text))
    pairs = [(x, y) for x, y in zip(graph.x, graph.value, strict=True) if abs(y) < float("inf")]
    if not pairs:
        return ["(not finite anywhere on [-5, 5])"]
    plotext.clear_figure()
    plotext.theme("clear")
    plotext.plotsize(_WIDTH, _HEIGHT)
    plotext.plot(*map(list, zip(*pairs, strict=True)), marker="*")
    return [line.rstrip() for line in plotext.uncolorize(plotext.build()).splitlines()]
