"""Data of a study's report and figures, computed when first needed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from bo_act.activations.expressions import Expression
from bo_act.metrics import Metric
from bo_act.report.embedding_map import EmbeddingMap, LayerSpectra, embedding_map, spectra
from bo_act.report.loaded_study import LoadedStudy
from bo_act.report.predictions import Calibration, Predictions, calibration, predictions, seen
from bo_act.report.trials import Row, importances, ranked, rows
from bo_act.spaces.costs import operator_times, operators_of
from bo_act.study.results.confirmed import Confirmed
from bo_act.study.results.failures import failures, nothing_found
from bo_act.study.results.summary import StudyResult, read_result
from bo_act.study.results.verdict import Verdict, verdict
from bo_act.study.storage.trials import averaged, repetition
from bo_act.tasks.configuration import REFERENCE, functions_of
from bo_act.tasks.failures import FailureGroup

_TOP = 3  # functions drawn large if nothing was confirmed


@dataclass(frozen=True)
class ReportData:
    """Data of a study's report as plain values, computed when first needed."""

    subject: LoadedStudy

    @property
    def metric(self) -> Metric:
        """The metric."""
        return self.subject.metric

    @cached_property
    def rows(self) -> list[Row]:
        """The trials in their order."""
        return rows(self.subject)

    @cached_property
    def ranked(self) -> list[Row]:
        """The complete trials, the best first; those of a repeated function as one, their mean."""
        if not any(map(repetition, self.subject.trials)):
            return ranked(self.rows, self.metric)
        means = {trial.number: trial.value for trial in averaged(self.subject.trials)}
        of_mean = [replace(r, value=means[r.number]) for r in self.rows if r.number in means]
        return ranked(of_mean, self.metric)

    @cached_property
    def result(self) -> StudyResult | None:
        """The study's result; None for a study without a file."""
        return read_result(self.subject.spec) if self.subject.spec else None

    @property
    def confirmed(self) -> tuple[Confirmed, ...]:
        """Fresh-seed results."""
        return self.result.confirmed if self.result else ()

    @cached_property
    def verdict(self) -> Verdict | None:
        """The verdict; None before the confirmation."""
        return verdict(self.confirmed, self.metric)

    @cached_property
    def failures(self) -> Sequence[FailureGroup]:
        """The failures, with reasons."""
        return self.result.failures if self.result else failures(self.subject.trials)

    @cached_property
    def lacking(self) -> str:
        """Why there is no best function; empty if there is one."""
        if self.result:
            return self.result.lacking
        return nothing_found(self.subject.trials, objective=True)

    @cached_property
    def _times(self) -> dict[str, float]:
        return dict(self.subject.study.user_attrs.get("operator_times", {}))

    def times(self, functions: Sequence[Expression]) -> Mapping[str, float]:
        """Times of some functions' operators: from the study, or measured on the CPU."""
        unknown = [f for f in functions if not operators_of(f) <= self._times.keys()]
        if unknown or not self._times:
            # The minimum of several: other work on the machine only adds time.
            repeats = [operator_times(of=unknown) for _ in range(3)]
            for name in repeats[0]:
                self._times.setdefault(name, min(times[name] for times in repeats))
        return self._times

    @cached_property
    def _seen(self) -> Any:
        return seen(self.subject)

    @cached_property
    def predictions(self) -> list[Predictions]:
        """The surrogate's prediction of each function, one per activation."""
        return predictions(self.subject, self._seen)

    @cached_property
    def calibration(self) -> tuple[Calibration | None, str]:
        """The cross-validated surrogate, or why there is none."""
        return calibration(self._seen)

    @cached_property
    def embedding_map(self) -> EmbeddingMap | None:
        """The embedding as a map."""
        return embedding_map(self.subject, self.predictions)

    @cached_property
    def best(self) -> list[str]:
        """Texts of the best functions, the winner of the confirmation first."""
        names = [row.activation for row in self.confirmed if row.role == "found"]
        if self.verdict:
            names.insert(0, self.verdict.winner.activation)
        names += [text for row in self.ranked for text in row.functions]
        return list(dict.fromkeys(names))[:_TOP]

    @cached_property
    def spectra(self) -> tuple[list[LayerSpectra], str]:
        """Fisher spectra of the best functions and of ReLU."""
        functions = [text for best in self.best for text in functions_of(best).values()]
        return spectra(self.subject, [*functions, REFERENCE])

    @cached_property
    def importances(self) -> tuple[dict[str, float], str]:
        """Of slots and other parameters."""
        return importances(self.subject)
