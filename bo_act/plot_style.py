"""One style for all figures: colours, strokes, sizes, and files.

Figures are matplotlib's, as wide as a column of a paper for each panel in a row, and never shown.
Sizes are in inches.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, ParamSpec

from bo_act.dependencies.extras import require_extra
from bo_act.errors import BoActError
from bo_act.io import reason, replacing

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
"""Okabe and Ito's, which people who see few colours can tell apart; after them, other strokes."""
STROKES: tuple[Any, ...] = ("-", (0, (4, 1.5)), (0, (1, 1.2)))
GREY = "0.45"
"""What others are compared with."""
FAINT = "0.8"
"""Axes through zero."""
DASHED = (0, (4, 2))
SCALE = "viridis"
"""Colours of values."""

COLUMN = 3.3
"""Width of a column in most proceedings."""
PANEL = 2.4
"""Height of a panel that is as wide as a column."""

_STYLE: Any = {
    "font.size": 7.5,
    "axes.titlesize": 7.5,
    "axes.linewidth": 0.6,
    "axes.grid": True,
    "axes.grid.which": "major",
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "grid.linewidth": 0.3,
    "grid.alpha": 0.6,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "xtick.minor.width": 0.4,
    "ytick.minor.width": 0.4,
    "legend.fontsize": 7,
    "legend.frameon": False,
    "legend.handletextpad": 0.4,
    "legend.columnspacing": 1.0,
    "lines.linewidth": 1.2,
    "lines.markersize": 3,
    "mathtext.default": "regular",
    "image.cmap": SCALE,
}

# Files do not depend on their time of creation.
_METADATA: dict[str, Any] = {
    ".pdf": {"CreationDate": None, "Creator": None, "Producer": None},
    ".png": {"Software": None},
    ".svg": {"Date": None, "Creator": None},
}

P = ParamSpec("P")


def styled(draw: Callable[P, Figure]) -> Callable[P, Figure]:
    """Draw in this style, without changing matplotlib's settings.

    A decorated function raises MissingExtraError if matplotlib is not installed.
    """

    @functools.wraps(draw)
    def with_style(*arguments: P.args, **options: P.kwargs) -> Figure:
        mpl = require_extra("report", "a figure", modules=("matplotlib",))
        with mpl.rc_context(_STYLE):
            return draw(*arguments, **options)

    return with_style


def panels(
    rows: int = 1, columns: int = 1, *, height: float = PANEL, width: float = COLUMN
) -> tuple[Figure, list[Axes]]:
    """Return a figure of a width and height, and its panels from left to right, row by row."""
    from matplotlib.figure import Figure as Drawing

    figure = Drawing(figsize=(width, height), layout="constrained")
    return figure, list(figure.subplots(rows, columns, squeeze=False).flat)


def colour_and_stroke(n: int) -> dict[str, Any]:
    """Return the style of the n-th curve: colours first, then other strokes."""
    return {
        "color": COLOURS[n % len(COLOURS)],
        "linestyle": STROKES[n // len(COLOURS) % len(STROKES)],
    }


def save(figure: Figure, path: Path, *, dpi: int = 300, parents: bool = True) -> Path:
    """Write a figure as .pdf, .png or .svg, reproducibly.

    Args:
        figure: to write.
        path: of the file.
        dpi: pixels per inch of a PNG.
        parents: make its folder if missing.

    Raises:
        BoActError: another ending, or it cannot be written.
    """
    import matplotlib as mpl

    kind = path.suffix.lower()
    if kind not in _METADATA:
        raise BoActError(f"expected a file that ends in .pdf, .png or .svg, got {str(path)!r}")
    try:
        with (
            mpl.rc_context({"svg.hashsalt": path.stem, "pdf.fonttype": 42}),
            replacing(path, parents=parents) as temporary,
        ):
            figure.savefig(temporary, format=kind[1:], dpi=dpi, metadata=_METADATA[kind])
    except OSError as error:
        raise BoActError(f"cannot write {path}: {reason(error)}") from error
    return path
