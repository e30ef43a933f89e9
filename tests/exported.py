"""Running what was exported, in a process in which bo_act cannot be imported."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from bo_act.activations.derivatives import value_and_slope
from bo_act.activations.expressions import parse
from bo_act.exports.exporter import export

# Off zero: slopes at kinks are a matter of taste.
GRID = torch.linspace(-5, 5, 1000, dtype=torch.float64)

RUN = r"""
import json, sys
from pathlib import Path

import numpy as np


class NoBoAct:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "bo_act":
            raise ImportError("bo_act is not here")


sys.meta_path.insert(0, NoBoAct())
folder, dtype, points = Path(sys.argv[1]), sys.argv[3], np.load(sys.argv[4])
target, _, backend = sys.argv[2].partition(" on ")
x = points.astype(dtype)


def with_torch(function):
    import torch

    torch.set_num_threads(1)
    t = torch.from_numpy(x.copy()).requires_grad_()
    value = function(t)
    assert value.dtype == t.dtype
    if not value.requires_grad:
        return value.numpy(), np.zeros_like(x)
    (slope,) = torch.autograd.grad(value.sum(), t)
    return value.detach().numpy(), slope.numpy()


def with_jax(function):
    import jax

    jax.config.update("jax_enable_x64", True)
    value, back = jax.vjp(function, jax.numpy.asarray(x))
    assert value.dtype == x.dtype
    return np.asarray(value), np.asarray(back(jax.numpy.ones_like(value))[0])


def with_keras(function):
    return {"torch": with_torch, "jax": with_jax}[backend](function)


def with_onnx(path):
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    session = onnxruntime.InferenceSession(str(path), options)
    return session.run(["y"], {"x": x})[0], np.zeros_like(x)


def run(path):
    if target == "onnx":
        return with_onnx(path)
    names = {"__name__": path.stem}
    exec(compile(path.read_text(), str(path), "exec"), names)
    return {"torch": with_torch, "jax": with_jax, "keras": with_keras}[target](names["activation"])


paths = sorted(folder.glob("f*"), key=lambda p: int(p.stem[1:]))
found = [run(path) for path in paths]
np.savez(sys.argv[5], value=np.stack([v for v, _ in found]), slope=np.stack([s for _, s in found]))
"""


@dataclass(frozen=True)
class Ran:
    """What n exported functions gave on a grid: (n, points) each, float64."""

    value: np.ndarray
    slope: np.ndarray


def run_exported(
    expressions: Sequence[str],
    target: str,
    dtype: str,
    folder: Path,
    *,
    points: np.ndarray | None = None,
) -> Ran:
    """Export functions and run them elsewhere; Keras by backend, ``"keras on jax"``."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, text in enumerate(expressions):
        written = export(text, to=target.split(maxsplit=1)[0])
        path = folder / f"f{number}.{'onnx' if target == 'onnx' else 'py'}"
        path.write_bytes(written if isinstance(written, bytes) else written.encode())
    np.save(folder / "points.npy", GRID.numpy() if points is None else points)
    (folder / "run.py").write_text(RUN)
    out = folder / f"{dtype}.npz"
    done = subprocess.run(
        [sys.executable, "run.py", ".", target, dtype, "points.npy", out.name],
        cwd=folder,
        env={**os.environ, "KERAS_BACKEND": target.rsplit(maxsplit=1)[-1], "PYTHONPATH": ""},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found = np.load(out)
    return Ran(found["value"].astype(float), found["slope"].astype(float))


@dataclass(frozen=True)
class Agreement:
    """One function: worst errors relative to max(1, |ours in float64|), and ours in that dtype.

    Points at which the exact value or slope is beyond float32 are left out for float32.
    """

    value: float
    slope: float
    our_value: float
    our_slope: float
    not_finite: int

    def within(self, tolerance: float) -> bool:
        """Whether it is as good as ours is, or to the tolerance."""
        return (
            self.not_finite == 0
            and self.value <= max(tolerance, 10 * self.our_value)
            and self.slope <= max(tolerance, 10 * self.our_slope)
        )


def agreement(
    text: str, value: np.ndarray, slope: np.ndarray, dtype: str, points: np.ndarray | None = None
) -> Agreement:
    """Compare with bo_act's own."""
    x64 = (GRID if points is None else torch.from_numpy(points)).to(getattr(torch, dtype)).double()
    exact = [part.numpy() for part in value_and_slope(parse(text), x64)]
    ours = [
        part.double().numpy()
        for part in value_and_slope(parse(text), x64.to(getattr(torch, dtype)))
    ]
    errors, not_finite = [], 0
    for theirs, own, true in zip((value, slope), ours, exact, strict=True):
        known = np.isfinite(true) & np.isfinite(own) & (np.abs(true) < 1e37)
        not_finite += int((~np.isfinite(theirs[known])).sum())
        scale = np.maximum(1, np.abs(true[known]))
        with np.errstate(invalid="ignore"):
            for one in (theirs[known], own[known]):
                error = np.abs(one - true[known]) / scale
                errors.append(float(np.nanmax(error, initial=0.0)))
    return Agreement(errors[0], errors[2], errors[1], errors[3], not_finite)


# Zero and both sides of it, where padding and zero biases are; the tails; and what is no number.
SPECIAL = np.array([0.0, -0.0, 1e-8, -1e-8, 5, -5, 100, -100, np.inf, -np.inf, np.nan])


def at_special_points(text: str, value: np.ndarray, slope: np.ndarray | None, dtype: str) -> str:
    """Say what is other than ours at ``SPECIAL``, or ``""``.

    Where ours is finite theirs is as large; where a value of ours is infinite or no number theirs
    is the same. A value beyond 1e30 may overflow in one and not in the other.
    """
    x = torch.from_numpy(SPECIAL).to(getattr(torch, dtype))
    ours = [part.double().numpy() for part in value_and_slope(parse(text), x)]
    wrong = []
    for what, own, theirs in zip(("value", "slope"), ours, (value, slope), strict=True):
        if theirs is None:
            continue
        for at, one, other in zip(SPECIAL, own, theirs, strict=True):
            if np.isfinite(one):
                good = abs(one - other) <= 1e-4 * max(1.0, abs(one)) or abs(one) > 1e30
            else:
                good = what == "slope" or np.array_equal(one, other, equal_nan=True)
                good |= bool(np.isinf(one) and abs(other) > 1e30)
            if not good:
                wrong.append(f"{what} at {at:g}: {other:g} instead of {one:g}")
    return "; ".join(wrong)
