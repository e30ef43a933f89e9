"""The quickstart notebook runs from top to bottom, and results show themselves in it."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest

from bo_act.study.results.confirmed import Confirmed, Difference, Interval
from bo_act.study.results.failures import nothing_found
from bo_act.study.results.summary import Found, StudyResult
from bo_act.study.storage.trials import Counts

NOTEBOOK = Path(__file__).resolve().parents[2] / "docs" / "quickstart.ipynb"
SHORT = {
    "space": "classic",
    "trials": "12",
    "training.epochs": "2",
    "data.train": "256",
    "features.quantiles": "16",
    "confirm.seeds": "2",
}


@pytest.fixture(scope="module")
def notebook():
    nbformat = pytest.importorskip("nbformat")
    return nbformat.read(NOTEBOOK, as_version=4)


def test_no_outputs_are_kept(notebook):
    for cell in notebook.cells:
        if cell.cell_type == "code":
            assert cell.outputs == []
            assert cell.execution_count is None


@pytest.mark.slow
def test_it_runs_and_shows_what_it_finds(notebook, tmp_path):
    client = pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    notebook = copy.deepcopy(notebook)
    for cell in notebook.cells:
        if cell.source.startswith("CHANGES = {}"):
            cell.source = f"CHANGES = {SHORT!r}"
    client.NotebookClient(
        notebook, timeout=240, resources={"metadata": {"path": str(tmp_path)}}
    ).execute()
    shown = [
        output.data
        for cell in notebook.cells
        if cell.cell_type == "code"
        for output in cell.outputs
        if "data" in output
    ]
    html = [data["text/html"] for data in shown if "text/html" in data]
    assert len(html) == 4  # an activation, a space, a study and a comparison
    for words, page in zip(
        (
            ["<math", "<svg"],
            ["5,103", "<svg"],
            ["test accuracy", "<svg"],
            ["P(default beats random)"],
        ),
        html,
        strict=True,
    ):
        assert all(word in page for word in words)
    assert sum("image/png" in data for data in shown) == 2
    assert (tmp_path / "report.html").stat().st_size > 4_000_000


# --- what shows itself ------------------------------------------------------------------------


def confirmed(name: str, gain: Difference | None, role: str = "found") -> Confirmed:
    half = Interval(0.9, 0.89, 0.91)
    minus = {} if gain is None else {"relu(x)": gain}
    return Confirmed(name, {"training.learning_rate": 0.1}, 1, role, 5, 0, half, half, minus=minus)


def test_results_show_the_verdict_and_every_function():
    rows = (
        confirmed("early: tanh(x), late: mul(x,erf(x))", Difference(0.02, 0.01, 0.03, p=0.01)),
        confirmed("relu(x)", None, "baseline"),
    )
    found = Found("tanh(x)", 0.95, 7)
    result = StudyResult("s", "x.db", Counts(complete=9), found, found, (found,), rows)
    page = result._repr_html_()
    assert "is better than ReLU: +2.00 ±1.00" in page
    assert page.count("<svg") == 3
    assert "learning_rate 0.1" in page
    assert "tuned on its own, it may be better" in page
    alone = StudyResult("s", "x.db", Counts(complete=9), found, found, (found,))._repr_html_()
    assert "not confirmed" in alone
    assert "95.00%" in alone
    nothing = StudyResult(
        "<s>", "x.db", Counts(), None, Found("relu(x)", None, None), lacking=nothing_found([])
    )
    assert "No function has been evaluated yet." in nothing._repr_html_()
    assert "<s>" not in nothing._repr_html_()
