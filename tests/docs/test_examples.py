"""The examples in the docstrings of all that `import bo_act` offers run as they stand."""

from __future__ import annotations

import doctest
import inspect

import optuna
import pytest
import torch

import bo_act

optuna.logging.set_verbosity(optuna.logging.WARNING)

WITHOUT = {"METHODS"}
"""What is no function and no class."""


@pytest.mark.parametrize("name", sorted(set(bo_act.__all__) - WITHOUT - {"__version__"}))
def test_an_example_runs(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shown = getattr(bo_act, name)
    names = dict(vars(inspect.getmodule(shown)))
    found = doctest.DocTestFinder(recurse=False).find(shown, name, globs=names)
    examples = [one for one in found if one.examples]
    assert examples, f"bo_act.{name} has no Example in its docstring"
    said: list[str] = []
    torch.manual_seed(0)
    with torch.random.fork_rng():
        for one in examples:
            doctest.DocTestRunner(verbose=False).run(one, out=said.append)
    assert not said, "".join(said)
