"""Formulas and graphs: what is drawn is the function, and nothing gets out of its box."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET

import numpy as np
import pytest

from bo_act import Activation, load_space
from bo_act.activations.expressions import parse
from bo_act.activations.plots import graph, path, sample, windows
from bo_act.html import Markup, box, table

# --- graphs ---------------------------------------------------------------------------------


def test_a_graph_goes_through_the_functions_values():
    drawn = ET.fromstring(graph("tanh(x)", width=200, height=100))
    (curve,) = [p for p in drawn if p.get("class") == "curve"]
    points = np.array(re.findall(r"[ML]([-\d.]+) ([-\d.]+)", curve.get("d")), dtype=float)
    x = points[:, 0] / 200 * 10 - 5
    # The window is [-1, 1] with a margin of 6% of its height.
    y = (1 + 0.12) - points[:, 1] / 100 * (2 + 0.24)
    low, high = np.tanh([-5, 5])
    np.testing.assert_allclose(y, np.tanh(x), atol=0.02)
    assert (low, high) == pytest.approx((-1, 1), abs=1e-3)


def test_a_pole_and_what_is_not_finite_interrupt_a_curve():
    values = sample([parse("reciprocal(x)"), parse("log_sigmoid(x)")], 100)
    (low, _), (high, _) = windows(values)
    assert path(values[0], low, high, 100, 50).count("M") == 2
    row = np.array([0.0, np.nan, 1.0, 2.0, np.inf, 0.5])
    assert path(row, 0.0, 2.0, 50, 50).count("M") == 3


def test_windows_are_finite_whatever_the_values():
    values = np.array([[np.nan] * 3, [np.inf, -np.inf, 0.0], [7.0] * 3, [1e30, -1e30, 0.0]])
    low, high = windows(values)
    assert np.isfinite([low, high]).all()
    assert (high - low >= 0.5 - 1e-12).all()
    assert (high - low <= 12).all()


# --- notebooks ------------------------------------------------------------------------------


def well_formed(html: str) -> ET.Element:
    return ET.fromstring(f"<body>{html}</body>")


def test_activations_and_spaces_show_themselves():
    shown = Activation("sub(relu(x),erfc(x))", normalize=True)._repr_html_()
    well_formed(shown)
    for part in ("<svg", "<math", "sub(relu(x),erfc(x))", "mean", "mean 0, variance 1"):
        assert part in shown
    space = load_space("act_bench")._repr_html_()
    assert len(well_formed(space).findall(".//svg")) == len(load_space("act_bench").baselines)
    assert "5,103" in space
    assert len(space) < 60_000


def test_texts_are_escaped_and_markup_is_not():
    bad = "<script>alert('x')</script>"
    shown = box(bad, bad, table([bad], [[bad], [Markup("<b>1</b>")]], numbers=frozenset({0})))
    assert "<script" not in shown
    assert "<b>1</b>" in shown
    well_formed(shown)
