"""Compare the methods of a file, and put the table between two markers of the documentation.

``make compare`` (the standing check, which only prints) and ``make compare-all`` run it.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from pandas import DataFrame

from bo_act.comparison.compare import compare
from bo_act.comparison.metrics import adjusted
from bo_act.comparison.plan import read_plan
from bo_act.terminal import benchmarks, live

ROOT = Path(__file__).parents[2]
SHOWN = (5, 10, 20, 30, 50)  # evaluations, besides the last
BEGIN, END = "<!-- {}: begin -->", "<!-- {}: end -->"


def markdown(frame: DataFrame, comparisons: list[dict]) -> str:
    """Return a comparison as Markdown: a short table, and behind a click one of every figure."""
    first = comparisons[0]["a"] if comparisons else ""
    beats = {one["b"]: one for one in adjusted([p for p in comparisons if p["a"] == first])}
    every = f"<details markdown>\n<summary>Every figure</summary>\n\n{full(frame, first, beats)}"
    return f"{brief(frame, first, beats)}\n\n{every}\n\n</details>"


def brief(frame: DataFrame, first: str, beats: dict[str, dict]) -> str:
    """Return a row for each benchmark, regret at 20 and in the end by method, and who wins."""
    last = [c for c in frame.columns if c.startswith("regret ")][-1]
    shown = [c for c in frame.columns if c in ("regret 20", last)]
    names = list(dict.fromkeys(frame["benchmark"]))
    ranks = frame.groupby("benchmark", sort=False)[last].rank()
    order = ranks.groupby(frame["method"], sort=False).mean().sort_values(kind="stable").index
    methods = [first, *(m for m in order if m != first)] if first else list(order)
    lines = [
        f"| benchmark | {' | '.join(f'`{method}`' for method in methods)} |",
        "|---" + "|---:" * len(methods) + "|",
    ]
    for name in names:
        rows = frame[frame["benchmark"] == name].set_index("method")
        cells = [", ".join(f"{rows.loc[method, c]:.2g}" for c in shown) for method in methods]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    if beats:
        won = [_won(beats[method]) if method in beats else "" for method in methods]
        lines.append(f"| P(`{first}` beats it) | {' | '.join(won)} |")
    return "\n".join(lines)


def _won(pair: dict) -> str:
    low, high = pair["ci95"]
    on = f"{pair['ahead']}/{len(pair['benchmarks'])}"
    return f"{pair['probability']:.2f} [{low:.2f}, {high:.2f}], {on}, {pair['p_holm']:.2g}"


def full(frame: DataFrame, first: str, beats: dict[str, dict]) -> str:
    """Return a row for each benchmark and method."""
    regrets = [c for c in frame.columns if c.startswith("regret ")]
    shown = [c for c in regrets if int(c.split()[1]) in SHOWN or c == regrets[-1]]
    columns = [*shown, "± 95%", "median rank", "test regret", "to top 1%", "seconds"]
    lines = [
        f"| benchmark | method | {' | '.join(columns)} | {first} beats it |",
        "|---" * 2 + "|---:" * (len(columns) + 1) + "|",
    ]
    for _, row in frame.iterrows():
        cells = ["-" if row[c] is None or row[c] != row[c] else f"{row[c]:.2g}" for c in columns]
        pair = beats.get(row["method"])
        won = "" if pair is None else f"{pair['benchmarks'][row['benchmark']]:.2f}"
        lines.append(f"| {row['benchmark']} | `{row['method']}` | {' | '.join(cells)} | {won} |")
    return "\n".join(lines)


def put(document: Path, name: str, text: str) -> None:
    """Replace what stands between the markers of a document.

    Raises:
        ValueError: the document has no such markers.
    """
    content = document.read_text(encoding="utf-8")
    begin, end = BEGIN.format(name), END.format(name)
    if content.count(begin) != 1 or content.count(end) != 1:
        raise ValueError(f"{document}: expected {begin} and {end} once each")
    before, _, rest = content.partition(begin)
    _, _, after = rest.partition(end)
    document.write_text(f"{before}{begin}\n\n{text}\n\n{end}{after}", encoding="utf-8")


def main() -> None:
    """Compare and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("plan", type=Path, help="comparison file")
    parser.add_argument("--out", type=Path, required=True, help="folder of the runs")
    parser.add_argument(
        "--name", help="of the markers in docs/results/benchmarks.md; none: only print"
    )
    parser.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--figures", type=Path, help="folder that the figures are copied to")
    options = parser.parse_args()
    plan = read_plan(options.plan, {})
    with live(quiet=False) as events:
        found = compare(
            plan.benchmarks,
            plan.chosen(),
            evaluations=plan.evaluations,
            seeds=plan.seeds,
            first_seed=plan.first_seed,
            at=plan.at,
            told=plan.told,
            initial=plan.initial,
            warm_start=plan.warm_start,
            workers=options.workers,
            out=options.out,
            events=events,
        )
    found.save(options.out)
    benchmarks.comparison(found)
    if options.name is None:
        return
    table = f"{plan.seeds} seeds.\n\n{markdown(found.table, found.summary['comparisons'])}"
    put(ROOT / "docs" / "results" / "benchmarks.md", options.name, table)
    if options.figures is not None:
        options.figures.mkdir(parents=True, exist_ok=True)
        for file in options.out.glob("*.svg"):
            (options.figures / file.name).write_bytes(file.read_bytes())


if __name__ == "__main__":
    main()
