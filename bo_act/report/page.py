"""Writing a report: one HTML file with style, scripts and data."""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bo_act import __version__
from bo_act.dependencies.extras import require_extra
from bo_act.errors import BoActError
from bo_act.html import Markup, escape
from bo_act.io import atomic_write, reason

_PAGE = Path(__file__).parent / "templates"


def check_installed() -> None:
    """Check that a report can be written, before any work for it.

    Raises:
        MissingExtraError: the extra ``report`` is not installed.
    """
    require_extra("report", "a report", modules=("jinja2", "plotly"))


def render(template: str, data: Mapping[str, Any], **content: Any) -> str:
    """Fill a template, escaping everything except markup.

    Args:
        template: name of the file.
        data: for the page's scripts; JSON.
        content: the template's variables.

    Raises:
        MissingExtraError: the extra ``report`` is not installed.
    """
    check_installed()
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from plotly.offline import get_plotlyjs

    pages = Environment(
        loader=FileSystemLoader(_PAGE),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    page: str = pages.get_template(template).render(
        version=__version__,
        style=_file("report.css"),
        script=_file("report.js"),
        plotly=Markup(get_plotlyjs().replace("</script", "<\\/script")),
        data=as_script(data),
        **content,
    )
    return page


def _file(name: str) -> Markup:
    return Markup((_PAGE / name).read_text(encoding="utf-8"))


def as_script(data: Mapping[str, Any]) -> Markup:
    """Return data as JSON that is safe inside a script element."""
    text = json.dumps(data, allow_nan=False, separators=(",", ":"), ensure_ascii=False)
    return Markup(text.replace("<", "\\u003c").replace("\u2028", " ").replace("\u2029", " "))


def numbers(values: NDArray[np.float64], digits: int = 4) -> list[float | None]:
    """Return numbers rounded to significant digits; null if not finite."""
    return [float(f"{v:.{digits}g}") if math.isfinite(v) else None for v in values.tolist()]


def packed(values: NDArray[np.float64], low: NDArray[np.float64], high: NDArray[np.float64]) -> str:
    """Return (n, k) curves with one byte per point, base64.

    0 to 250 span the window from ``low`` to ``high``, 251 and 252 are below and above it, 255 is
    not finite.
    """
    scaled = np.rint(250 * (values - low[:, None]) / (high - low)[:, None])
    codes = np.full(values.shape, 255, dtype=np.uint8)
    finite = np.isfinite(values)
    inside = finite & (scaled >= 0) & (scaled <= 250)
    codes[inside] = scaled[inside].astype(np.uint8)
    codes[finite & (scaled < 0)] = 251
    codes[finite & (scaled > 250)] = 252
    codes[np.isposinf(values)] = 252
    codes[np.isneginf(values)] = 251
    return base64.b64encode(codes.tobytes()).decode()


def whisker(
    mean: float, low: float | None, high: float | None, ends: tuple[float, float]
) -> Markup:
    """Draw a mean and its interval on an axis, as a small SVG.

    Values beyond the ends are at the ends.
    """
    width, height = 104, 18

    def at(value: float) -> float:
        span = ends[1] - ends[0] or 1.0
        value = min(max(value, ends[0]), ends[1])
        return 6 + (width - 12) * (value - ends[0]) / span

    bar = ""
    if low is not None and high is not None:
        bar = (
            f'<path class="bar" d="M{at(low):.1f} 9H{at(high):.1f}M{at(low):.1f} 5v8'
            f'M{at(high):.1f} 5v8"/>'
        )
    zero = f'<path class="zero" d="M{at(0):.1f} 0V18"/>' if ends[0] <= 0 <= ends[1] else ""
    text = escape(f"{mean:.4g}")
    return Markup(
        f'<svg class="whisker" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
        f'role="img" aria-label="{text}">{zero}{bar}'
        f'<circle cx="{at(mean):.1f}" cy="9" r="4"/></svg>'
    )


def line(values: Sequence[float]) -> Markup:
    """Draw a curve as a small SVG without axes; nothing for fewer than two values."""
    if len(values) < 2:
        return Markup("")
    low, high = min(values), max(values)
    step = 76 / (len(values) - 1)
    points = [
        f"{2 + step * k:.1f} {2 + 16 * (high - v) / ((high - low) or 1):.1f}"
        for k, v in enumerate(values)
    ]
    return Markup(
        '<svg viewBox="0 0 80 20" width="80" height="20" aria-hidden="true"><path class="curve" '
        f'd="M{"L".join(points)}" fill="none" stroke-width="1.5"/></svg>'
    )


def write(page: str, path: Path) -> Path:
    """Write a report atomically.

    Raises:
        BoActError: it cannot be written.
    """
    try:
        atomic_write(path, page)
    except OSError as error:
        raise BoActError(f"cannot write {path}: {reason(error)}") from error
    return path
