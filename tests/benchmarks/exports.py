"""Exports of every finite function of the Act-Bench space, run without bo-act and compared.

    python tests/benchmarks/exports.py --out runs/exports            # a quarter of an hour

Errors are relative to max(1, |value|) with value and slope in float64 by bo-act on 1,000 points of
[-5, 5]. A function agrees if the error is at most the tolerance (float32: 2e-5, float64: 1e-12), or
ten times that of bo-act itself in the same dtype; if it is finite wherever bo-act is; and if value
and slope are bo-act's at 0, -0, 1e-8, 5 and 100 of either sign, infinity and what is no number.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "support"))

import numpy as np
from exported import GRID, SPECIAL, agreement, at_special_points, run_exported

from bo_act.activations.derivatives import value_and_slope
from bo_act.activations.expressions import parse
from bo_act.spaces.space import load_space

TOLERANCE = {"float32": 2e-5, "float64": 1e-12}
RUNS = (
    ("torch", "float32"),
    ("torch", "float64"),
    ("jax", "float32"),
    ("jax", "float64"),
    ("onnx", "float32"),
    ("keras on torch", "float32"),
    ("keras on jax", "float32"),
)
_AT_ONCE = 400  # functions a process


def functions() -> list[str]:
    catalogue = load_space("act_bench").catalogue
    return [catalogue.text(i) for i in range(len(catalogue)) if catalogue.finite[i]]


def compare(texts: list[str], target: str, dtype: str, folder: Path) -> dict:
    rows = []
    for start in range(0, len(texts), _AT_ONCE):
        some = texts[start : start + _AT_ONCE]
        points = np.concatenate([GRID.numpy(), SPECIAL])
        inside = folder / f"{target}-{dtype}-{start}".replace(" ", "_")
        ran = run_exported(some, target, dtype, inside, points=points)
        count = len(GRID)
        for text, value, slope in zip(some, ran.value, ran.slope, strict=True):
            there, special = slope[:count], slope[count:]
            if target == "onnx":  # a model has no slope
                x = GRID.to(getattr(torch, dtype))
                there, special = value_and_slope(parse(text), x)[1].numpy(), None
            found = agreement(text, value[:count], there, dtype)
            rows.append((text, found, at_special_points(text, value[count:], special, dtype)))
    tolerance = TOLERANCE[dtype]
    return {
        "target": target,
        "dtype": dtype,
        "functions": len(rows),
        "agree": sum(found.within(tolerance) and not other for _, found, other in rows),
        "within the tolerance": sum(
            max(found.value, found.slope) <= tolerance and not found.not_finite
            for _, found, _ in rows
        ),
        "not finite": sum(found.not_finite > 0 for _, found, _ in rows),
        "worst value": max(found.value for _, found, _ in rows),
        "worst slope": None if target == "onnx" else max(found.slope for _, found, _ in rows),
        "our worst value": max(found.our_value for _, found, _ in rows),
        "our worst slope": max(found.our_slope for _, found, _ in rows),
        "disagree": {
            text: {**vars(found), "at special points": other}
            for text, found, other in rows
            if other or not found.within(tolerance)
        },
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("runs/exports"))
    parser.add_argument("--target", help="only this one")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    print("| target | dtype | functions | agree | worst value | worst slope | bo-act itself |")
    print("|---|---|---|---|---|---|---|")
    for target, dtype in RUNS:
        if arguments.target not in (None, target):
            continue
        path = arguments.out / f"{target}-{dtype}.json"
        if not path.is_file():
            found = compare(functions(), target, dtype, arguments.out / "modules")
            path.write_text(json.dumps(found, indent=1))
        found = json.loads(path.read_text())
        slope = "" if found["worst slope"] is None else f"{found['worst slope']:.1e}"
        print(
            f"| {target} | {dtype} | {found['functions']:,} | {found['agree']:,} | "
            f"{found['worst value']:.1e} | {slope} | "
            f"{found['our worst value']:.1e}, {found['our worst slope']:.1e} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
