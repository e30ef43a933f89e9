"""Extras: one message wherever one is missing, and what is installed but broken is said so."""

from __future__ import annotations

import re
import sys
import tomllib
from pathlib import Path

import pytest

import bo_act
from bo_act.dependencies.extras import EXTRAS, has_extra, require_extra
from bo_act.errors import MissingExtraError

ROOT = Path(__file__).parents[2]


def test_the_extras_are_those_of_the_package():
    given = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    for extra in ("docs", "dev"):
        del given[extra]
    packages = {
        extra: {re.split(r"[\[<>=~]", one)[0] for one in some} for extra, some in given.items()
    }
    assert packages == {extra: set(modules.values()) for extra, modules in EXTRAS.items()}


def test_what_is_there_is_imported():
    assert require_extra("report", "a figure", modules=("matplotlib",)) is sys.modules["matplotlib"]


def test_what_is_missing_is_named_with_what_to_do(monkeypatch):
    monkeypatch.setitem(sys.modules, "plotly", None)
    monkeypatch.setitem(sys.modules, "jinja2", None)
    assert not has_extra("report")
    require_extra("report", "a figure", modules=("matplotlib",))
    with pytest.raises(MissingExtraError) as error:
        require_extra("report", "a report", otherwise="use the terminal")
    assert str(error.value) == (
        "a report needs jinja2 and plotly, which are not installed; install with: "
        "pip install 'bo-act[report]'; use the terminal"
    )


@pytest.mark.parametrize("raises", ["ImportError('numba')", "AttributeError('np.float_')"])
def test_what_is_installed_and_broken_is_not_called_missing(tmp_path, monkeypatch, raises):
    (tmp_path / "umap.py").write_text(f"raise {raises}\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "umap", raising=False)
    assert has_extra("umap")
    kind, said = raises.rstrip("')").split("('")
    message = rf"umap-learn, which is installed but cannot be imported \({kind}: {said}\)"
    with pytest.raises(MissingExtraError, match=message):
        require_extra("umap", 'the embedding "umap"')


def network(name: str) -> None:
    from bo_act.networks.libraries import _known

    _known.__wrapped__(name.partition(":")[0])


def figure() -> None:
    from bo_act.report.figures import gallery

    gallery(["tanh(x)"])


def storage(url: str) -> None:
    from bo_act.study.storage.opening import open_storage

    open_storage(url)


@pytest.mark.parametrize(
    ("module", "needs"),
    [
        ("onnx", lambda: bo_act.export("relu(x)", to="onnx")),
        ("timm", lambda: network("timm:resnet18")),
        ("transformers", lambda: network("transformers:vit")),
        ("matplotlib", figure),
        ("psycopg", lambda: storage("postgresql+psycopg://nobody@localhost/none")),
    ],
)
def test_every_user_of_an_extra_says_the_same(monkeypatch, module, needs):
    for name in [one for one in sys.modules if one.partition(".")[0] == module]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, module, None)
    extra = next(extra for extra, modules in EXTRAS.items() if module in modules)
    with pytest.raises(MissingExtraError) as error:
        needs()
    assert f"needs {module}, which is not installed" in str(error.value)
    assert f"pip install 'bo-act[{extra}]'" in str(error.value)


def test_no_other_place_says_how_to_install_an_extra():
    for file in (ROOT / "bo_act").rglob("*.py"):
        if file.name not in ("extras.py", "doctor_checks.py"):
            assert "pip install" not in file.read_text(encoding="utf-8"), file
