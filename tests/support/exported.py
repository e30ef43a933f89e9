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
from bo_act.activations.evaluation import plan
from bo_act.activations.expressions import canonical, parse
from bo_act.activations.operators import OPERATORS
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


paths = sorted(folder.glob("f[0-9]*"), key=lambda p: int(p.stem[1:]))
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

    Ours is what bo_act has in that dtype: as it is; with subnormal numbers taken for zero, as XLA
    has them; with each operator rounded but once; or in float64. The sign of an infinity may be
    another one, as that of a zero may. Beside zero the slopes of quotients and powers are
    differences of large numbers, and an ulp in these is as much as they are. No slope is asked for
    where there is no number, and where ours is not finite theirs may be anything.
    """
    x = torch.from_numpy(SPECIAL).to(getattr(torch, dtype))
    ours = [_ours(text, x), _ours(text, x.double())]
    ours += [_ours(text, x, flush=True), _ours(text, x, exact=True)]
    divides = any(name in text for name in ("div", "pow", "reciprocal"))
    rounding = float(torch.finfo(x.dtype).eps)
    wrong = []
    for place, what, theirs in ((0, "value", value), (1, "slope", slope)):
        if theirs is None:
            continue
        for column, at in enumerate(SPECIAL):
            some = [one[place][column] for one in ours]
            room = 1e-4
            if place == 1 and divides and 0 < abs(at) < 1e-6:
                room += 8 * rounding / abs(at)
            good = any(_as(one, theirs[column], room) for one in some)
            if place == 1:
                good |= bool(np.isnan(at)) or not np.isfinite(some).all()
            if not good:
                wrong.append(f"{what} at {at:g}: {theirs[column]:g} instead of {some[0]:g}")
    return "; ".join(wrong)


def _as(ours: float, theirs: float, room: float) -> bool:
    if np.isnan(ours) or np.isnan(theirs):
        return bool(np.isnan(ours) and np.isnan(theirs))
    if abs(ours) > 1e30:
        return abs(theirs) > 1e30
    return bool(abs(ours - theirs) <= room * max(1.0, abs(ours)))


@torch.enable_grad()
def _ours(
    text: str, x: torch.Tensor, *, flush: bool = False, exact: bool = False
) -> list[np.ndarray]:
    x = x.clone().requires_grad_()
    values = [x]
    for name, operands in plan(canonical(parse(text))):  # a tie's slope depends on the order
        some = [values[i].double() if exact else values[i] for i in operands]
        value = OPERATORS[name].function(*some).to(x.dtype)
        if flush:
            tiny = value.abs() < torch.finfo(x.dtype).tiny
            value = value + (torch.where(tiny, 0.0, value) - value).detach().nan_to_num(0.0)
        values.append(value)
    slope = torch.zeros_like(x)
    if values[-1].requires_grad:
        (slope,) = torch.autograd.grad(values[-1].sum(), x)
    return [part.detach().double().numpy() for part in (values[-1], slope)]
