"""Ending ``study.optimize`` once every function was tried."""

from __future__ import annotations

import threading
import warnings

from optuna.study import Study

_ONE_SAYS_SO = threading.Lock()  # of the threads of one study


def is_optimizing(study: Study) -> bool:
    """Tell whether it is ``study.optimize`` that asks for trials, and can be stopped."""
    return bool(_whole(study)._thread_local.in_optimize_loop)


def stop(study: Study, space: str) -> None:
    """Have ``study.optimize`` return, and say why.

    Args:
        study: that is being optimized.
        space: name of what was searched.
    """
    study = _whole(study)
    with _ONE_SAYS_SO:
        first = not study._stop_flag
        study.stop()
    if first:
        warnings.warn(
            f"the study {study.study_name!r} ends: every function of the space {space!r} that has "
            "a place in the embedding was tried",
            stacklevel=3,
        )


def _whole(study: Study) -> Study:
    """Return the study itself where Optuna hands out one of its brackets (Hyperband)."""
    return getattr(study, "_study", study)
