"""Commands that write results: a report as one HTML file, and figures for papers."""

from __future__ import annotations

import re
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from bo_act.cli.options import Named, Opened, Panel, Quiet, Set, Storage, completing, open_to_read

if TYPE_CHECKING:
    from bo_act.events import Events
    from bo_act.report.loaded_study import LoadedStudy

commands = typer.Typer()

Subject = Annotated[
    str | None,
    typer.Argument(
        metavar="STUDY",
        show_default=False,
        help="Name of a study, path of its .toml file, or folder of a comparison; or give "
        "--storage and --study.",
        autocompletion=completing("studies"),
    ),
]


@commands.command(
    epilog="Example: bo-act report quickstart -o quickstart.html", rich_help_panel=Panel.RESULTS
)
def report(
    study: Subject = None,
    *,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            "-o",
            metavar="FILE",
            help="Output file (default: report.html in the run's folder).",
        ),
    ] = None,
    changes: Set = None,
    storage: Storage = None,
    named: Named = None,
    quiet: Quiet = False,
) -> None:
    """Write a report of a study or a comparison: one HTML file that works offline."""
    from bo_act.report.page import write

    if study is not None and (folder := Path(study)).is_dir():
        from bo_act.comparison.compare import load_comparison
        from bo_act.report.comparison import comparison_report

        page = comparison_report(load_comparison(folder), title=folder.resolve().name)
    else:
        opened = open_to_read(study, changes, storage, named)
        folder = Path("runs") / re.sub(r"[^\w.-]+", "_", opened.study.study_name)
        from bo_act import terminal
        from bo_act.report.study import study_report

        with terminal.live(quiet=quiet) as events:
            page = study_report(_loaded(opened, events))
    print(write(page, out or folder / "report.html"))


def _loaded(opened: Opened, events: Events) -> LoadedStudy:
    from bo_act.report.loaded_study import load_for_report, named_for_report

    if opened.spec is None:
        return named_for_report(opened.study)
    return load_for_report(opened.spec, events)


class Kind(StrEnum):
    """The kinds of figures."""

    progress = "progress"
    map = "map"
    gallery = "gallery"
    spectra = "spectra"
    calibration = "calibration"
    regret = "regret"
    ranks = "ranks"
    suggestion_times = "suggestion_times"


_OF_COMPARISONS = (Kind.regret, Kind.ranks, Kind.suggestion_times)


@commands.command(
    epilog="Example: bo-act plot map quickstart -o map.pdf", rich_help_panel=Panel.RESULTS
)
def plot(
    kind: Annotated[
        Kind,
        typer.Argument(
            metavar="KIND",
            help="Figure: progress, map, gallery, spectra or calibration of a study; regret, "
            "ranks or suggestion_times of a comparison's folder.",
        ),
    ],
    study: Subject = None,
    *,
    out: Annotated[
        Path, typer.Option("--out", "-o", metavar="FILE", help="Output file: .pdf, .png or .svg.")
    ],
    top: Annotated[int, typer.Option(min=1, metavar="N", help="Functions in a gallery.")] = 9,
    changes: Set = None,
    storage: Storage = None,
    named: Named = None,
    quiet: Quiet = False,
) -> None:
    """Draw a figure for a paper, one column wide."""
    from bo_act.errors import BoActError
    from bo_act.plot_style import COLUMN, save
    from bo_act.report import figures

    if (kind in _OF_COMPARISONS) != (study is not None and Path(study).is_dir()):
        needed = "a comparison's folder" if kind in _OF_COMPARISONS else "a study"
        raise BoActError(f"{kind.value} needs {needed}, got {study or named!r}")
    if kind in _OF_COMPARISONS and study is not None:
        from bo_act.comparison.compare import load_comparison

        figure = load_comparison(Path(study)).figures(width=COLUMN)[kind.value]
    else:
        opened = open_to_read(study, changes, storage, named)
        from bo_act import terminal
        from bo_act.report.data import ReportData

        with terminal.live(quiet=quiet) as events:
            data = ReportData(_loaded(opened, events))
        if kind == Kind.gallery:
            figure = figures.gallery_of(data, top)
        else:
            draw = {
                Kind.progress: figures.progress,
                Kind.map: figures.embedding_map,
                Kind.spectra: figures.spectra,
                Kind.calibration: figures.calibration,
            }[kind]
            figure = draw(data)
    print(save(figure, out))
