"""Nothing of ours depends on what somebody has set in torch for all of a process or a block."""

from __future__ import annotations

import ast
from pathlib import Path

import bo_act

PACKAGE = Path(bo_act.__file__).parent
WHOLE = {"randperm", "randint", "arange"}
FLOATING = {
    "zeros", "ones", "empty", "full", "rand", "randn", "normal", "linspace", "logspace", "eye",
    "tensor", "scalar_tensor",
}  # fmt: skip
KEEPING = {"as_tensor", "asarray"}  # the dtype of what they are given


def careless(tree: ast.AST) -> list[tuple[int, str]]:
    """Calls of torch that make a tensor without saying where, or of what dtype."""
    found = []
    for node in ast.walk(tree):
        if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)):
            continue
        home, name = node.func.value, node.func.attr
        if not (isinstance(home, ast.Name) and home.id == "torch"):
            continue
        said = {keyword.arg for keyword in node.keywords}
        wanted = {"device"} if name in WHOLE | FLOATING | KEEPING else set()
        wanted |= {"dtype"} if name in FLOATING else set()
        if None not in said and wanted - said:
            found.append((node.lineno, name))
    return found


def test_every_tensor_is_made_on_a_device_and_of_a_dtype():
    found = [
        f"{path.relative_to(PACKAGE)}:{line} torch.{name}"
        for path in sorted(PACKAGE.rglob("*.py"))
        for line, name in careless(ast.parse(path.read_text(encoding="utf-8")))
    ]
    assert not found, "\n".join(found)
