"""The code that kept comparisons are bound to: what decides a search, and nothing else."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

import bo_act
from bo_act.comparison import code
from bo_act.comparison.code import code_digest

PACKAGE = Path(bo_act.__file__).parent
OURS = code_digest()


@pytest.fixture(scope="module")
def package(tmp_path_factory) -> Path:
    copied = tmp_path_factory.mktemp("copied") / "bo_act"
    shutil.copytree(PACKAGE, copied, ignore=shutil.ignore_patterns("__pycache__", "library"))
    assert code_digest(copied) == OURS
    return copied


def digest_after(package: Path, place: str, change: Callable[[str], str]) -> str:
    file = package / place
    before = file.read_text(encoding="utf-8")
    try:
        file.write_text(change(before), encoding="utf-8")
        assert file.read_text(encoding="utf-8") != before
        return code_digest(package)
    finally:
        file.write_text(before, encoding="utf-8")


@pytest.mark.parametrize(
    ("place", "change"),
    [
        ("cli/doctor_checks.py", lambda text: text + "# checked\n"),
        ("cli/doctor_checks.py", lambda text: text + "CHECKED = True\n"),
        ("cli/benchmarks.py", lambda text: text + "COLOUR = 3\n"),
        ("activations/plots.py", lambda text: text + "COLOUR = 3\n"),
        ("comparison/metrics.py", lambda text: text.replace("_TOP = 0.01", "_TOP = 0.02")),
        ("search/searcher.py", lambda text: "# A comment.\n\n" + text.replace('"""', '"""New ', 1)),
        ("search/method.py", lambda text: text.replace("that does not mention it", "by default")),
        ("activations/operators.py", lambda text: text.replace("\n\n\n", "\n\n\n# Here:\n")),
        (
            "study/sampling/sampler.py",
            lambda text: text.replace("samples them separately", "draws them"),
        ),
    ],
)
def test_what_no_search_runs_changes_nothing(package, place, change):
    assert digest_after(package, place, change) == OURS


@pytest.mark.parametrize(
    ("place", "old", "new"),
    [
        ("activations/operators.py", "torch.erfc,", "torch.erf,"),
        ("search/surrogate/fitting.py", "_FTOL = 1e-5", "_FTOL = 1e-6"),
        ("search/searcher.py", "scores == scores.max()", "scores == scores.min()"),
        ("specs/search.py", '"winsorized"\n', '"rank_normal"\n'),
        ("study/storage/study_view.py", "trial.number not in self._lost", "True"),
        ("comparison/replay.py", "baselines: bool = True", "baselines: bool = False"),
        ("comparison/replay.py", "[seed, len(design)]", "[seed]"),
        ("features/outputs.py", "torch.asinh(", "torch.tanh("),
    ],
)
def test_what_decides_a_search_is_in_it(package, place, old, new):
    assert digest_after(package, place, lambda text: text.replace(old, new)) != OURS


def test_a_module_that_is_imported_by_one_of_them_is_in_it(package):
    added = package / "search" / "added.py"
    added.write_text("NUMBER = 1\n", encoding="utf-8")

    def use(text: str) -> str:
        return text.replace("import math\n", "import math\nfrom bo_act.search import added\n")

    first = digest_after(package, "search/surrogate/fitting.py", use)
    added.write_text("NUMBER = 2\n", encoding="utf-8")
    second = digest_after(package, "search/surrogate/fitting.py", use)
    assert len({OURS, first, second}) == 3
    assert code_digest(package) == OURS  # not imported, not in it
    added.unlink()


def test_what_is_left_out_is_there():
    for name in code._BESIDE:
        assert code._file(PACKAGE, name) is not None
