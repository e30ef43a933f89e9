"""Tables of benchmarks and comparisons."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
from rich.markup import escape
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn
from rich.table import Table

from bo_act import terminal
from bo_act.comparison.metrics import adjusted, remarks
from bo_act.statistics import shown_p

if TYPE_CHECKING:
    from bo_act.benchmark.table import Benchmark
    from bo_act.comparison.compare import Comparison
    from bo_act.metrics import Metric

_BINS = 20
_BAR = 40  # characters


def say(line: str) -> None:
    """Print a line on stderr."""
    terminal.err.print(line, soft_wrap=True, markup=False)


@contextmanager
def downloading(*, quiet: bool) -> Iterator[Callable[[int, int | None], None]]:
    """Show the progress of a download."""
    bars = Progress(
        TextColumn("download"),
        BarColumn(bar_width=30),
        DownloadColumn(),
        TransferSpeedColumn(),
        console=terminal.err,
        disable=quiet or not terminal.err.is_terminal,
    )
    with bars:
        task = bars.add_task("", total=None)

        def progress(done: int, total: int | None) -> None:
            bars.update(task, completed=done, total=total)

        yield progress


def show(
    benchmark: Benchmark,
    *,
    top: int = 10,
    as_json: Callable[[dict[str, Any]], None] | None = None,
) -> None:
    """Print the content of a benchmark, or pass it to ``as_json``."""
    content = described(benchmark, top=top)
    if as_json is not None:
        as_json(content)
        return
    diverged = content["diverged"]
    rows = {
        "space": f"{benchmark.space.name} ({len(benchmark):,} functions)",
        "metric": escape(str(benchmark.metric)),
        "measured": f"{content['measured']:,} functions, {_runs(benchmark)} each",
        "diverged": f"{diverged['runs']:,} of {content['runs']:,} runs ({diverged['share']:.1%}), "
        f"{diverged['functions']:,} functions in every run"
        if benchmark.seeds > 1
        else f"{diverged['runs']:,} functions ({diverged['share']:.1%})",
        "Fisher spectra": f"{content['with_spectra']:,}",
        "learning curves": f"{content['epochs']} epochs" if content["epochs"] else "none",
        "total training time": terminal.duration(content["seconds"]) if content["seconds"] else "?",
        "hash": benchmark.hash[:16],
    }
    if benchmark.unmatched:
        more = len(benchmark.unmatched) - 5
        rows["not in the space"] = ", ".join(benchmark.unmatched[:5]) + (
            f" and {more} more" if more > 0 else ""
        )
    terminal.key_values(f"Benchmark {benchmark.name}", rows)
    _histogram(benchmark)
    _best(benchmark, content)
    if content["luck"] is not None:
        _selection_bias(content["luck"], benchmark)


def described(benchmark: Benchmark, *, top: int) -> dict[str, Any]:
    """Return the JSON of ``bo-act bench show``."""
    from bo_act.benchmark.selection_bias import selection_bias

    finite = np.isfinite(benchmark.runs["validation_value"])
    complete = int(finite.all(axis=1).sum())
    seconds = benchmark.runs["seconds"][finite]
    good = benchmark.metric.sign * benchmark.values
    order = np.argsort(-np.where(benchmark.measured, good, -np.inf), kind="stable")
    fim = benchmark.features.blocks.get("fim")
    deviation = benchmark.deviations
    best = [
        {
            "activation": benchmark.space.catalogue.text(int(index)),
            "validation": float(benchmark.values[index]),
            "deviation": None if benchmark.seeds < 2 else float(deviation[index]),
            "test": _number(benchmark.test[index]),
        }
        for index in order[: min(top, int(benchmark.measured.sum()))]
    ]
    return {
        "name": benchmark.name,
        "space": benchmark.space.name,
        "metric": benchmark.metric.as_json(),
        "functions": len(benchmark),
        "measured": int(benchmark.measured.sum()),
        "runs": int(finite.sum()),
        "diverged": {
            "runs": int(benchmark.diverged.sum()),
            "share": float(benchmark.diverged.sum() / finite.sum()),
            "functions": int(
                np.all(benchmark.diverged | ~finite, axis=1)[benchmark.measured].sum()
            ),
        },
        "unmatched": list(benchmark.unmatched),
        "with_spectra": 0 if fim is None else int(fim.present.sum()),
        "epochs": 0 if benchmark.curves is None else benchmark.curves.shape[2],
        "seconds": _number(seconds.sum()) if np.isfinite(seconds).all() else None,
        "chance": benchmark.chance,
        "best": best,
        "luck": selection_bias(benchmark, top=top)
        if benchmark.seeds > 1 and complete >= 5
        else None,
        "hash": benchmark.hash,
    }


def _number(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None


def _histogram(benchmark: Benchmark) -> None:
    metric, values = benchmark.metric, benchmark.values[benchmark.measured]
    ends = 0.0, max(1e-9, float(values.max()))
    if not metric.in_percent:
        # Very bad values would leave no room for the rest.
        far = float(np.quantile(metric.sign * values, 0.05))
        if np.isfinite(benchmark.chance):
            far = max(far, metric.sign * benchmark.chance)
        ends = float(values.min()), float(values.max())
        ends = (far, ends[1]) if metric.sign > 0 else (ends[0], -far)
    counts, edges = np.histogram(np.clip(values, *ends), bins=_BINS, range=ends)
    title = f"Functions by mean {metric.name} on validation data"
    table = Table(title=escape(title), title_justify="left")
    table.add_column(escape(metric.name), justify="right")
    table.add_column("functions", justify="right")
    table.add_column("")
    for count, low, high in zip(counts, edges[:-1], edges[1:], strict=True):
        bar = "█" * round(_BAR * count / counts.max())
        span = f"{low:.1%} to {high:.1%}" if metric.in_percent else f"{low:.4g} to {high:.4g}"
        table.add_row(span, str(count), bar or ("▏" if count else ""))
    terminal.out.print(table)


def _best(benchmark: Benchmark, content: dict[str, Any]) -> None:
    several, metric = benchmark.seeds > 1, benchmark.metric
    title = f"Best by {metric.name} on validation data"
    title += f" (mean of {_runs(benchmark)})" if several else ""
    table = Table(title=escape(title), title_justify="left")
    table.add_column("rank", justify="right")
    table.add_column("activation", overflow="fold")
    table.add_column("validation", justify="right")
    if several:
        table.add_column("s.d. of runs", justify="right")
    table.add_column("test", justify="right")
    for rank, row in enumerate(content["best"], start=1):
        spread = [_amount(row["deviation"], metric)] if several else []
        test = "" if row["test"] is None else metric.text(row["test"])
        value = metric.text(row["validation"])
        table.add_row(str(rank), row["activation"], *map(escape, (value, *spread, test)))
    terminal.out.print(table)


def _runs(benchmark: Benchmark) -> str:
    if benchmark.seeds == 1:
        return "1 run"
    counts = np.isfinite(benchmark.runs["validation_value"]).sum(axis=1)[benchmark.measured]
    return (
        f"{benchmark.seeds} runs"
        if counts.min() == benchmark.seeds
        else f"{counts.min()} to {benchmark.seeds} runs"
    )


def _amount(value: float, metric: Metric) -> str:
    """Return a difference without its sign."""
    return metric.difference(value).lstrip("+-")


def _selection_bias(bias: dict[str, Any], benchmark: Benchmark) -> None:
    metric = benchmark.metric
    title = "Selection bias of the best"
    if bias["functions"] < benchmark.measured.sum():
        title += f", among the {bias['functions']:,} functions with all runs"
    unit = " points" if metric.in_percent else f" {metric.unit}".rstrip()
    lucky, top = f"{_amount(bias['shrinkage'], metric)}{unit}", bias["correlation_top"]
    rows = {
        "one run against the mean of the others": f"Spearman {bias['correlation']:.2f} over all"
        + (f", {top:.2f} within the best fifth" if np.isfinite(top) else ""),
        "s.d. of runs in that fifth": f"{_amount(bias['deviation'], metric)}{unit} (median)",
        "best by the other runs": f"{metric.text(bias['chosen'])} there, "
        f"{metric.text(bias['held_out'])} in the held-out run: {lucky} "
        + ("of selection bias" if bias["shrinkage"] >= 0 else "better there"),
        "regret": f"{_amount(bias['regret_of_mean'], metric)}{unit} worse than the best by all "
        "runs",
    }
    rows = {name: escape(text) for name, text in rows.items()}
    terminal.key_values(title, rows)


def comparison(result: Comparison) -> None:
    """Print the table of a comparison, and the probabilities that methods beat others."""
    frame = result.table
    regrets = [column for column in frame.columns if column.startswith("regret ")]
    compared_at = result.summary["compared_at"]
    wanted = _nearest(regrets, tuple(sorted({20, 50, compared_at})))
    shown = list(dict.fromkeys([*wanted, regrets[-1]]))
    columns = [*shown, "± 95%", "median rank", "test regret", "to top 1%", "seconds"]
    for name, rows in frame.groupby("benchmark", sort=False):
        metric = result.benchmarks[str(name)].metric
        title = f"Regret on {name}, in {metric.differences}"
        table = Table(title=escape(title), title_justify="left")
        table.add_column("method", no_wrap=True)
        for column in columns:
            table.add_column(_HEADS.get(column, column.removeprefix("regret ")), justify="right")
        for _, row in rows.iterrows():
            cells = row[columns].astype(object)
            if cells["seconds"] is not None:
                cells["seconds"] *= 1000
            table.add_row(escape(row["method"]), *map(_cell, cells))
        terminal.out.print(table)
    terminal.out.print(_CAPTION, style="dim")
    for remark in remarks(result.summary):
        terminal.out.print(remark, style="dim")
    for name, told in result.summary.get("told", {}).items():
        said = f"{name} was warm-started from {', '.join(told['by'])}"
        if told["not_by"]:
            said += f"; not from {', '.join(told['not_by'])}: the same task or data"
        terminal.out.print(said, style="dim")
    first = next(iter(result.summary["methods"]))
    rows = {
        escape(pair["b"]): f"{pair['probability']:.2f}  [{pair['ci95'][0]:.2f}, "
        f"{pair['ci95'][1]:.2f}], p {shown_p(pair['p_holm'])}, ahead on {pair['ahead']} of "
        f"{len(pair['benchmarks'])}"
        for pair in adjusted([p for p in result.summary["comparisons"] if p["a"] == first])
        if pair["probability"] is not None
    }
    if rows:
        when = f"after {compared_at} evaluations"
        single = len(result.benchmarks) == 1
        over = "of this benchmark alone" if single else "over similar benchmarks"
        terminal.key_values(
            f"Probability that {escape(first)} beats each method {when} (95% interval {over}; p "
            f"against one half, Holm-adjusted for {len(rows)})",
            rows,
        )


_HEADS = {
    "± 95%": "±",
    "median rank": "rank",
    "test regret": "test",
    "to top 1%": "to 1%",
    "seconds": "ms",
}

_CAPTION = (
    "Methods by regret over the whole search, best first. Columns: mean validation regret after "
    "that many evaluations (± 95% where methods are compared); median rank of the best function; "
    "its test regret; median evaluations until it is in the top 1%; median time of a suggestion."
)


def _nearest(regrets: list[str], wanted: tuple[int, ...]) -> list[str]:
    numbers = [int(column.split()[1]) for column in regrets]
    return [f"regret {number}" for number in wanted if number in numbers]


def _cell(value: Any) -> str:
    if value is None or (isinstance(value, float) and not np.isfinite(value)):
        return "-"
    if isinstance(value, float):
        if 0 < abs(value) < 0.01:  # eight columns of "0.000789" do not fit on a line
            digits, _, exponent = f"{value:.1e}".partition("e")
            return f"{digits}e{int(exponent)}"
        return f"{value:.2f}" if value == 0 or 0.1 <= value < 10 else f"{value:.3g}"
    return str(value)
