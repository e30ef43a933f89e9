"""Reports in a real browser: they draw, answer, and ask for nothing over a network."""

from __future__ import annotations

import dataclasses
import re
import shutil
import subprocess
from functools import partial
from pathlib import Path

import numpy as np
import optuna
import pytest
from benchmarks_of_tests import random_benchmark
from PIL import Image
from studies_of_tests import searched

from bo_act import compare, load_space
from bo_act.activations.operators import OPERATORS
from bo_act.benchmark.parquet import save
from bo_act.report.comparison import comparison_report
from bo_act.report.data import ReportData
from bo_act.report.embedding_map import embedding_map
from bo_act.report.page import write
from bo_act.report.study import study_report

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
QUIET = ("--no-sandbox", "--disable-gpu", "--disable-background-networking", "--no-first-run")
# Told by the software renderer of a machine without a GPU, of its own speed.
OF_THE_RENDERER = "GPU stall due to ReadPixels"

optuna.logging.set_verbosity(optuna.logging.WARNING)


@pytest.fixture(scope="module")
def chromium():
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    if CHROMIUM is None:
        pytest.skip("there is no chromium; on Debian: apt install chromium")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=list(QUIET))
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def subject():
    return searched(load_space("classic"))


@pytest.fixture(scope="module")
def report(subject, tmp_path_factory) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        times = dict.fromkeys(OPERATORS, 1.0)
        patch.setattr("bo_act.report.data.operator_times", lambda **_: times)
        return write(study_report(subject), tmp_path_factory.mktemp("report") / "report.html")


class Visit:
    """A page, what it complained of and what it asked for."""

    def __init__(self, browser, path: Path, *, width: int = 1280, theme: str = "light") -> None:
        self.complaints: list[str] = []
        self.requests: list[str] = []
        context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=theme)
        self.page = context.new_page()
        self.page.on("console", self._said)
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.goto(path.resolve().as_uri())
        self.page.wait_for_load_state("load")

    def _said(self, message) -> None:
        if message.type in ("error", "warning") and OF_THE_RENDERER not in message.text:
            self.complaints.append(message.text)

    def check(self) -> None:
        assert self.complaints == []
        abroad = [url for url in self.requests if not url.startswith(("file:", "data:", "blob:"))]
        assert abroad == []
        assert sum(url.startswith("file:") for url in self.requests) == 1

    def __enter__(self) -> Visit:
        return self

    def __exit__(self, *_: object) -> None:
        self.page.context.close()


@pytest.mark.parametrize(("width", "theme"), [(390, "dark"), (820, "light"), (1400, "dark")])
def test_it_draws_at_every_width(chromium, report, width, theme):
    with Visit(chromium, report, width=width, theme=theme) as visit:
        page = visit.page
        for name in ("progress", "map", "calibration", "importances"):
            page.wait_for_selector(f"#chart-{name} .main-svg")
        wide, inner = page.evaluate("[document.documentElement.scrollWidth, innerWidth]")
        assert wide <= inner  # nothing is cut off on a phone
        for box in page.locator(".chart").all():
            assert box.bounding_box()["height"] > 80
        back = page.evaluate("getComputedStyle(document.body).backgroundColor")
        assert back == {"light": "rgb(255, 255, 255)", "dark": "rgb(20, 23, 26)"}[theme]
        visit.check()


def test_charts_follow_the_theme(chromium, report):
    ink = "document.querySelector('#chart-progress')._fullLayout.legend.font.color"
    with Visit(chromium, report) as visit:
        visit.page.wait_for_selector("#chart-progress .main-svg")
        light = visit.page.evaluate(ink)
        visit.page.emulate_media(color_scheme="dark")
        visit.page.wait_for_function(f"{ink} !== '{light}'")
        visit.page.emulate_media(media="print")
        assert visit.page.locator("nav").is_hidden()
        visit.check()


def printed(page, path: Path) -> tuple[list[str], Path]:
    """Print a page; return the text of each sheet, and the file."""
    if not shutil.which("pdftotext"):
        pytest.skip("there is no pdftotext; on Debian: apt install poppler-utils")
    page.pdf(path=path, format="A4", prefer_css_page_size=True)
    run = subprocess.run(["pdftotext", "-layout", path, "-"], capture_output=True, check=True)
    return run.stdout.decode().split("\f")[:-1], path


@pytest.mark.parametrize("width", [390, 1500])
def test_a_printed_report(chromium, report, subject, tmp_path, width):
    """All sections stand on paper, dark on light, as wide as the paper, without what one clicks."""
    found = ReportData(subject)
    with Visit(chromium, report, width=width, theme="dark") as visit:
        visit.page.wait_for_selector("#chart-importances .main-svg")
        sheets, path = printed(visit.page, tmp_path / "report.pdf")
        visit.check()
    assert 3 <= len(sheets) <= 8
    text = "\n".join(sheets)
    for heading in ("The answer", "Progress", "Map of the functions", "What matters", "Trials"):
        (sheet,) = (one for one in sheets if re.search(rf"^ *{heading}$", one, flags=re.MULTILINE))
        after = sheet.split(heading, 1)[1]
        assert len(after.split()) > 5, f"{heading} stands alone at the end of a sheet"
    assert found.best[0] in text
    table = re.split(r"^ *Trials$", text, flags=re.MULTILINE)[-1]
    listed = re.findall(r"^ *(\d+) +\S.*(?:complete|pruned)", table, flags=re.MULTILINE)
    assert [int(number) for number in listed] == [row.number for row in found.rows]
    for control in ("up to trial", "find", "↕", "Point at a function"):
        assert control not in text
    run = ["pdftoppm", "-r", "30", "-gray", "-f", "1", "-l", "2", path, tmp_path / "sheet"]
    subprocess.run(run, check=True)
    for sheet in sorted(tmp_path.glob("sheet*.pgm")):
        pixels = np.asarray(Image.open(sheet))
        assert np.median(pixels) == 255
        assert pixels.min() < 100


def test_charts_are_drawn_for_the_paper_and_back(chromium, report):
    """What the browser tells before and after printing."""
    box = "document.querySelector('#chart-{} .main-svg').clientWidth"
    ink = "document.querySelector('#chart-progress')._fullLayout.legend.font.color"
    with Visit(chromium, report, width=1500, theme="dark") as visit:
        page = visit.page
        page.wait_for_selector("#chart-importances .main-svg")
        names = ("progress", "map", "calibration", "importances")
        before = [page.evaluate(box.format(name)) for name in names]
        assert page.evaluate(ink) == "#e7eaec"
        page.evaluate("dispatchEvent(new Event('beforeprint'))")
        page.wait_for_function(f"{ink} === '#1c2024'")
        assert [page.evaluate(box.format(name)) for name in names] == [700] * 4
        page.evaluate("dispatchEvent(new Event('afterprint'))")
        page.wait_for_function(f"{ink} === '#e7eaec'")
        assert [page.evaluate(box.format(name)) for name in names] == before
        visit.check()


def place_of(page, text: str) -> tuple[int, float, float]:
    """Return a function's number on the map, and where it is on the screen."""
    page.locator("#chart-map").scroll_into_view_if_needed()
    return page.evaluate(
        """text => {
            const M = JSON.parse(document.getElementById("data").textContent).map;
            const i = M.text.indexOf(text), chart = document.getElementById("chart-map");
            const { xaxis, yaxis } = chart._fullLayout, box = chart.getBoundingClientRect();
            return [i, box.left + xaxis._offset + xaxis.d2p(M.x[i]),
                    box.top + yaxis._offset + yaxis.d2p(M.y[i])];
        }""",
        text,
    )


def test_pointing_at_a_function_shows_it(chromium, report, subject):
    best = ReportData(subject).ranked[0]
    with Visit(chromium, report) as visit:
        page = visit.page
        page.wait_for_selector("#chart-map .main-svg")
        index, x, y = place_of(page, best.functions[0])
        page.mouse.move(x - 40, y - 40)
        page.mouse.move(x, y, steps=4)
        page.wait_for_selector(f"#map-card[data-index='{index}'] svg .curve")
        said = page.locator("#map-card").inner_text()
        assert best.functions[0] in said
        assert f"trial {best.number}" in said
        assert f"{best.value:.4g}"[:5] in said
        assert "predicted" in said
        page.mouse.click(x, y)  # pinned: another one no longer takes its place
        page.mouse.move(x - 150, y - 100, steps=5)
        assert page.locator("#map-card").get_attribute("data-index") == str(index)
        visit.check()


def test_search_finds_by_formula(chromium, report, subject):
    texts = [subject.sampler.catalogue.text(i) for i in range(len(subject.sampler.catalogue))]
    valid = subject.sampler.embedding.valid
    expected = [t for t, there in zip(texts, valid, strict=True) if there and "tanh" in t]
    assert 1 < len(expected) < valid.sum()
    with Visit(chromium, report) as visit:
        page = visit.page
        page.wait_for_selector("#chart-map .main-svg")
        page.fill("#map-search", " TANH")
        found = page.locator("#map-found")
        assert f"{len(expected)} of {int(valid.sum())} functions" in found.inner_text()
        assert page.evaluate("document.getElementById('chart-map').data[1].x.length") == len(
            expected
        )
        found.locator("button").first.click()
        assert page.locator("#map-card code").inner_text() == min(expected, key=len)
        page.fill("#map-search", "")
        assert found.inner_text() == ""
        visit.check()


def test_search_of_a_map_that_shows_a_part(chromium, subject, tmp_path, monkeypatch):
    monkeypatch.setattr(
        "bo_act.report.data.operator_times", lambda **_: dict.fromkeys(OPERATORS, 1.0)
    )
    monkeypatch.setattr("bo_act.report.data.embedding_map", partial(embedding_map, most=25))
    total = int(subject.sampler.embedding.valid.sum())
    assert total > 25
    with Visit(chromium, write(study_report(subject), tmp_path / "part.html")) as visit:
        page = visit.page
        page.wait_for_selector("#chart-map .main-svg")
        page.fill("#map-search", "x")
        assert page.locator("#map-found").inner_text().startswith("25 of the 25 functions shown.")
        assert f"Of {total} functions 25 are shown" in page.locator("#map").inner_text()
        visit.check()


def test_colour_and_time_of_the_map(chromium, report):
    marker = "document.getElementById('chart-map').data"
    with Visit(chromium, report) as visit:
        page = visit.page
        page.wait_for_selector("#chart-map .main-svg")
        before = page.evaluate(f"{marker}[0].marker.color")
        page.select_option("#map-colour", "deviation")
        assert page.evaluate(f"{marker}[0].marker.color") != before
        page.locator("#map-until").fill("4")
        assert page.evaluate(f"{marker}.at(-1).x.length") == 5
        page.select_option("#map-colour", "measured")
        assert page.evaluate(f"{marker}.at(-1).marker.color.length") == 5
        visit.check()


def test_the_table_sorts_and_filters(chromium, report, subject):
    rows = ReportData(subject).rows
    first = "#trials-table tbody tr:not([hidden]) td:first-child"
    with Visit(chromium, report) as visit:
        page = visit.page
        assert page.locator(first).all_inner_texts() == [str(row.number) for row in rows]
        page.click("#trials-table th:has-text('value')")
        page.click("#trials-table th:has-text('value')")
        measured = [row for row in rows if row.value is not None]
        best = sorted(measured, key=lambda row: -row.value)
        shown = page.locator(first).all_inner_texts()
        assert int(shown[0]) == best[0].number
        assert int(shown[len(measured) - 1]) == best[-1].number
        assert int(shown[-1]) == 11  # the pruned one has no value: it comes last
        page.select_option("#trials-state", "pruned")
        assert page.locator(first).all_inner_texts() == ["11"]
        page.select_option("#trials-state", "")
        page.fill("#trials-search", "relu(")
        wanted = [row for row in rows if "relu(" in row.functions[0]]
        assert len(page.locator(first).all()) == len(wanted) < len(rows)
        assert page.locator("#trials-count").inner_text() == f"{len(wanted)} of {len(rows)}"
        visit.check()


def test_the_report_of_a_comparison(chromium, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    benchmark = random_benchmark(load_space("classic"), seed=1)
    save(dataclasses.replace(benchmark, name="one"), tmp_path / "one.parquet")
    found = compare(["one.parquet"], ["random", "evolution"], seeds=3, evaluations=8)
    path = write(comparison_report(found, title="<two>"), tmp_path / "report.html")
    with Visit(chromium, path, width=390) as visit:
        page = visit.page
        page.wait_for_selector("#chart-panel-0 .main-svg")
        assert page.evaluate("document.getElementById('chart-panel-0').data.length") == 6
        assert page.locator("h1").inner_text() == "<two>"
        page.click("#table th:has-text('method')")
        methods = page.locator("#table tbody tr td:nth-child(2)").all_inner_texts()
        assert methods == ["evolution", "random"]
        sheets, _ = printed(page, tmp_path / "comparison.pdf")
        visit.check()
    assert 1 <= len(sheets) <= 4
    text = " ".join("\n".join(sheets).split())
    assert re.search(r'class="verdict open">([^<]+)<', path.read_text()).group(1) in text
    for name in ("one.parquet evolution", "one.parquet random"):
        assert name in text


def test_a_request_and_an_error_would_be_noticed(chromium, tmp_path):
    page = tmp_path / "bad.html"
    page.write_text("<img src='http://127.0.0.1:9/x.png'><script>nothing()</script>")
    with Visit(chromium, page) as visit:
        assert any("nothing is not defined" in said for said in visit.complaints)
        assert "http://127.0.0.1:9/x.png" in visit.requests
