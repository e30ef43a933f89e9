"""How wide the house is: the files of one trial, the rooms, circles, seconds that people wait for.

    python tests/benchmarks/house.py               # half a minute
    python tests/benchmarks/house.py --tests       # and the time of ``make test``

*Files* and *moves* are those of the twelfth trial of a small study, from the end of the eleventh to
its own end: modules of bo_act in which a function was called, and calls from one of them to
another. *Circles* are groups of modules that import each other when they are loaded or used.
"""

from __future__ import annotations

import argparse
import ast
import json
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "bo_act"
TRIAL = 12
STUDY = {
    "name": "house",
    "space": "classic",
    "trials": TRIAL,
    "model": {"name": "mlp", "options": {"widths": [16, 16]}},
    "data": {"name": "digits", "train": 256, "validation": 200},
    "training": {"epochs": 3, "batch_size": 64, "threads": 1, "device": "cpu"},
    "features": {"batch_size": 32, "quantiles": 16},
    "confirm": {"seeds": 0},
}


# --- one trial ------------------------------------------------------------------------------


class Steps:
    """Counts calls between files from one trial's end to the next one's; stands for ``events``."""

    def __init__(self) -> None:
        self.entered: Counter[str] = Counter()
        self.moves = 0
        self._ours: dict[Any, str] = {}

    def __getattr__(self, name: str) -> Any:
        return lambda *_, **__: None

    def search(self, done: int, total: int, trial: object, best: object) -> None:
        """Begin after the trial before, and end after the trial."""
        del total, trial, best
        sys.setprofile(self._see if done == TRIAL - 1 else None)

    def _file(self, code: Any) -> str:
        if code not in self._ours:
            path = code.co_filename
            ours = path.startswith(f"{PACKAGE}{os.sep}")
            self._ours[code] = os.path.relpath(path, PACKAGE) if ours else ""
        return self._ours[code]

    def _see(self, frame: Any, event: str, _: object) -> None:
        if event != "call" or not (file := self._file(frame.f_code)):
            return
        self.entered[file] += 1
        caller = frame.f_back
        while caller is not None and not self._file(caller.f_code):
            caller = caller.f_back
        self.moves += caller is None or self._file(caller.f_code) != file


def one_trial() -> dict[str, Any]:
    """Run a small study and look at one trial."""
    import bo_act

    steps = Steps()
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        bo_act.run_study(bo_act.StudySpec.model_validate(STUDY), events=steps)  # type: ignore[arg-type]
        os.chdir(ROOT)
    return {
        "files": len(steps.entered),
        "moves": steps.moves,
        "most entered": dict(steps.entered.most_common(5)),
    }


# --- the house ------------------------------------------------------------------------------


def modules() -> dict[str, Path]:
    """Return all modules of the package and their files."""
    found = {}
    for path in PACKAGE.rglob("*.py"):
        name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
        found[name.removesuffix(".__init__")] = path
    return found


def imports(known: dict[str, Path]) -> dict[str, set[str]]:
    """Return which module imports which, but for type checkers."""
    found = {}
    for name, path in known.items():
        tree = ast.parse(path.read_text(encoding="utf-8"))
        unseen = {
            id(inner)
            for node in ast.walk(tree)
            if isinstance(node, ast.If) and getattr(node.test, "id", "") == "TYPE_CHECKING"
            for inner in ast.walk(node)
        }
        found[name] = {
            target if target in known else node.module
            for node in ast.walk(tree)
            if isinstance(node, ast.ImportFrom) and node.module and id(node) not in unseen
            for alias in node.names
            for target in [f"{node.module}.{alias.name}"]
        } & set(known)
    return found


def circles(graph: dict[str, set[str]]) -> list[list[str]]:
    """Return the groups of modules that reach each other."""
    reach = {name: set(nexts) for name, nexts in graph.items()}
    for middle in graph:
        for name in graph:
            if middle in reach[name]:
                reach[name] |= reach[middle]
    groups = {
        tuple(sorted(other for other in reach[name] if name in reach[other])) for name in graph
    }
    return [list(group) for group in sorted(groups) if len(group) > 1]


def rooms(known: dict[str, Path]) -> tuple[Counter[str], Counter[str]]:
    """Return lines by room and modules by folder."""
    lines: Counter[str] = Counter()
    files: Counter[str] = Counter()
    for path in known.values():
        parts = path.relative_to(PACKAGE).parts
        room = parts[0] if len(parts) > 1 else "(ground)"
        lines[room] += len(path.read_text(encoding="utf-8").splitlines())
        files["/".join(parts[:-1]) or "(ground)"] += path.name != "__init__.py"
    return lines, files


# --- seconds --------------------------------------------------------------------------------


def seconds_of(code: str) -> float:
    """Return the processor seconds of a new process, the least of three."""
    least = float("inf")
    for _ in range(3):
        before = os.times()
        subprocess.run([sys.executable, "-W", "ignore", "-c", code], check=True, cwd=ROOT)
        after = os.times()
        least = min(least, sum(after[2:4]) - sum(before[2:4]))
    return least


def suggestion(trials: int) -> float:
    """Return the seconds of one suggestion in a study in memory, the median of five."""
    import numpy as np
    import optuna

    import bo_act

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    space = bo_act.load_space("act_bench")
    sampler = bo_act.ActivationSampler(space, baselines=(), initial=0)
    study = optuna.create_study(direction="maximize", sampler=sampler)
    generator = np.random.default_rng(0)
    for index in generator.choice(len(space.catalogue), size=trials, replace=False):
        expression = space.catalogue.expression(int(index))
        space.enqueue(study, str(expression))
        trial = study.ask()
        space.suggest(trial)
        study.tell(trial, float(generator.normal()))
    taken = []
    for _ in range(5):
        started = time.perf_counter()
        trial = study.ask()
        space.suggest(trial)
        taken.append(time.perf_counter() - started)
        study.tell(trial, float(generator.normal()))
    return float(np.median(taken))


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tests", action="store_true", help="time `make test` as well")
    parser.add_argument("--trials", type=int, default=500, help="of the study of a suggestion")
    arguments = parser.parse_args()
    known = modules()
    lines, files = rooms(known)
    found: dict[str, Any] = {
        "one trial": one_trial(),
        "circles": circles(imports(known)),
        "lines": sum(lines.values()),
        "lines by room": dict(lines.most_common()),
        "most modules in a folder": dict(files.most_common(5)),
        "import of run_study, s": round(seconds_of("import bo_act; bo_act.run_study"), 2),
        f"suggestion at {arguments.trials} trials, s": round(suggestion(arguments.trials), 3),
    }
    if arguments.tests:
        started = time.perf_counter()
        subprocess.run(["make", "test"], cwd=ROOT, check=True)
        found["make test, s"] = round(time.perf_counter() - started)
    print(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
