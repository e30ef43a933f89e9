"""The package for OptunaHub: its form, and that its example finds what it searches."""

from __future__ import annotations

import importlib.util
import re
import sys
import types
from pathlib import Path

import bo_act

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "docs/optunahub/package/samplers/embedding"


def _loaded(monkeypatch) -> types.ModuleType:
    """Load the package as OptunaHub does, by its path, and let ``optunahub`` give it."""
    spec = importlib.util.spec_from_file_location(
        "optunahub_registry.package.samplers.embedding", PACKAGE / "__init__.py"
    )
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    hub = types.ModuleType("optunahub")
    hub.load_module = {"samplers/embedding": module}.__getitem__
    monkeypatch.setitem(sys.modules, "optunahub", hub)
    return module


def _head() -> dict[str, str]:
    head = (PACKAGE / "README.md").read_text().split("---")[1]
    return dict(re.findall(r"^(\w+): (.+)$", head, re.M))


def test_the_head_of_its_page_has_all_that_the_registry_asks_for():
    head = _head()
    assert head.keys() == {"author", "title", "description", "tags", "optuna_versions", "license"}
    assert head["tags"].startswith("[sampler")
    assert (
        f"optuna=={head['optuna_versions'].strip('[]')}" in (ROOT / "constraints.txt").read_text()
    )
    assert (PACKAGE / "LICENSE").read_text() == (ROOT / "LICENSE").read_text()


def test_it_is_our_sampler(monkeypatch):
    assert _loaded(monkeypatch).EmbeddingSampler is bo_act.EmbeddingSampler


def test_example_and_page_find_a_near_item(monkeypatch, capsys):
    _loaded(monkeypatch)
    code = (PACKAGE / "example.py").read_text()
    exec(compile(code, "example.py", "exec"), {})
    distance = float(capsys.readouterr().out.split(": ")[1])
    assert distance < 1e-3  # about six of 2,000 items are as near

    page = re.search(r"```python\n(.*?)```", (PACKAGE / "README.md").read_text(), re.S)[1]
    names: dict[str, object] = {}
    exec(compile(page, "README.md", "exec"), names)
    assert names["study"].best_value < 1e-3
