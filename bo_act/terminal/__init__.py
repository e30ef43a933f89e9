"""Terminal output: progress on stderr, tables and plots on stdout.

If stderr is not a terminal, it gets one line per phase.
"""

from bo_act.terminal.console import duration, err, key_values, out, plot, size
from bo_act.terminal.progress import FEATURES, counting, live
from bo_act.terminal.recommendation import recommendation
from bo_act.terminal.spaces import large_space, listed_space
from bo_act.terminal.status import show_status, status_table
from bo_act.terminal.tables import (
    explanation,
    feature_store,
    feature_table,
    study_tables,
)

__all__ = [
    "FEATURES",
    "counting",
    "duration",
    "err",
    "explanation",
    "feature_store",
    "feature_table",
    "key_values",
    "large_space",
    "listed_space",
    "live",
    "out",
    "plot",
    "recommendation",
    "show_status",
    "size",
    "status_table",
    "study_tables",
]
