"""What is shipped: the wheel, its content, and the names that `import bo_act` offers."""

from __future__ import annotations

import ast
import inspect
import json
import os
import shutil
import subprocess
import sys
import sysconfig
import tomllib
import typing
import venv
import zipfile
from pathlib import Path

import pytest

import bo_act

ROOT = Path(__file__).resolve().parents[2]


def run(*command: object, cwd: Path) -> subprocess.CompletedProcess[str]:
    # A PYTHONPATH would put the source before the wheel.
    env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        list(map(str, command)), cwd=cwd, env=env, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    # Built from a copy: a build may leave files behind, and other tests read the tree.
    source = tmp_path_factory.mktemp("source")
    for name in ("bo_act", "spaces", "models", "studies"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source / name)
    out = tmp_path_factory.mktemp("wheel")
    run(
        sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", out, source,
        cwd=source,
    )  # fmt: skip
    (built,) = out.glob("*.whl")
    return built


def test_text_is_utf_8_whatever_the_locale():
    ruff = Path(sys.executable).with_name("ruff")
    if not ruff.is_file():
        pytest.skip("needs ruff")
    run(ruff, "check", "--isolated", "--preview", "--select", "PLW1514", "bo_act", "models",
        "docs/hooks", cwd=ROOT)  # fmt: skip


def test_the_wheel_ships_the_content(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    for kind in ("spaces", "models", "studies"):
        for path in (ROOT / kind).glob("*.*"):
            assert f"bo_act/library/{kind}/{path.name}" in names
    assert "bo_act/py.typed" in names
    assert not [name for name in names if name.startswith(("tests", "spaces", "models"))]


@pytest.mark.slow
def test_the_wheel_works_in_a_new_environment_from_another_folder(wheel, tmp_path):
    home = tmp_path / "env"
    venv.create(home, with_pip=False)
    python = home / "bin" / "python"
    site = Path(
        run(
            python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=tmp_path
        ).stdout.strip()
    )
    # The dependencies come from this environment; of bo-act only the wheel is there, because
    # the .pth file of an editable install is not read from a folder that is itself a .pth entry.
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    run(
        sys.executable, "-m", "pip", "--python", python, "install", "--no-deps", "--no-index",
        wheel, cwd=tmp_path,
    )  # fmt: skip
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    where = run(python, "-c", "import bo_act; print(bo_act.__file__)", cwd=elsewhere).stdout
    assert str(site) in where
    command = home / "bin" / "bo-act"
    found = json.loads(run(command, "space", "act_bench", "--json", cwd=elsewhere).stdout)
    assert found["expressions"] == 5103
    options = ["space=classic", "trials=3", "training.epochs=1", "confirm.seeds=1"]
    done = run(
        command, "run", "quickstart", "--json", *(x for o in options for x in ("--set", o)),
        cwd=elsewhere,
    )  # fmt: skip
    assert json.loads(done.stdout)["trials"]["complete"] == 3
    assert (elsewhere / "runs" / "quickstart" / "study.db").is_file()


def test_every_public_name_can_be_imported():
    assert len(set(bo_act.__all__)) == len(bo_act.__all__)
    for name in bo_act.__all__:
        assert getattr(bo_act, name) is not None
    assert set(bo_act.__all__) <= set(dir(bo_act))
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = bo_act.nothing


def test_type_checkers_see_the_names_that_are_there():
    tree = ast.parse(Path(bo_act.__file__).read_text())
    (block,) = [n for n in tree.body if isinstance(n, ast.If) and "TYPE_CHECKING" in ast.dump(n)]
    seen = {alias.name: node.module for node in block.body for alias in node.names}
    assert seen == {name: f"bo_act.{home}" for name, home in bo_act._HOME.items()}


INNER = {
    "Configurations",
    "Difference",
    "ExpressionPool",
    "Paired",
    "Parameters",
    "Place",
    "Counts",
    "Confirmed",
    "FailureGroup",
    "Found",
    "TrialExplanation",
    "Step",
}
"""What is returned, and made by nobody else."""


def test_what_an_exported_function_takes_is_exported():
    """Of methods, those that people call: a constructor and functions."""
    missing = set()
    for name in bo_act._HOME:
        one = getattr(bo_act, name)
        called = vars(one).get("__init__") if inspect.isclass(one) else one
        if inspect.isfunction(called):
            try:
                hints = typing.get_type_hints(called)
            except NameError:  # of a name for type checkers alone
                continue
            missing |= {kind for hint in hints.values() for kind in ours(hint)}
    inner = INNER | {"InputFactorCache", "Embedder", "Enumeration"}  # every Space is one
    assert missing - set(bo_act.__all__) <= inner


def ours(hint: object) -> set[str]:
    inner = {name for part in typing.get_args(hint) for name in ours(part)}
    if inspect.isclass(hint) and hint.__module__.startswith("bo_act."):
        inner.add(hint.__name__)
    return inner


def test_the_version_is_the_projects():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert bo_act.__version__ == project["version"]


def test_importing_bo_act_is_light():
    script = "import bo_act, sys; sys.exit(bool({'torch', 'numpy', 'optuna'} & set(sys.modules)))"
    run(sys.executable, "-c", script, cwd=ROOT)


def test_the_errors_that_are_documented_are_those_that_exist():
    from bo_act import errors

    assert errors.__doc__ is not None
    classes = [name for name in errors.__all__ if name.endswith("Error")]
    for name in classes:
        assert issubclass(getattr(errors, name), errors.BoActError)
        assert name in errors.__doc__


def test_no_registry_is_named_in_the_constraints():
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    assert all(line.startswith("#") or line.count("==") == 1 for line in lines)
    assert "://" not in "".join(lines)
