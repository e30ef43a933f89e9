"""What bo-act relies on of torch's private parts: each is named here, and used in one file."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.overrides import TorchFunctionMode

import bo_act
from bo_act.dependencies import torch_internals
from bo_act.dependencies.torch_internals import (
    COMPILED,
    Dropout,
    InstanceNorm,
    RunningNorm,
    children_of,
    has_one_weight,
    is_compiler_loaded,
    is_transformed,
    members_of,
    set_child,
    version_of,
    without_torch_function,
)

PACKAGE = Path(bo_act.__file__).parent


def test_children_are_found_under_each_name_and_can_be_replaced():
    layer = nn.Tanh()
    network = nn.Sequential(layer, layer)
    network.register_module("none", None)
    assert dict(children_of(network)) == {"0": layer, "1": layer, "none": None}
    set_child(network, "1", nn.ReLU())
    assert [type(network[0]), type(network[1])] == [nn.Tanh, nn.ReLU]


def test_members_of_a_module():
    layer = nn.BatchNorm1d(2)
    layer.inner = nn.Tanh()
    names = {name for home in members_of(layer) for name in home}
    assert {"eps", "inner", "weight", "running_mean", "training"} <= names
    (weight,) = (home["weight"] for home in members_of(layer) if "weight" in home)
    assert weight is layer.weight


def test_attention_with_and_without_one_matrix():
    together = nn.MultiheadAttention(4, 2)
    apart = nn.MultiheadAttention(4, 2, kdim=3)
    assert has_one_weight(together)
    assert together.in_proj_weight.shape == (12, 4)
    assert not has_one_weight(apart)
    assert apart.k_proj_weight.shape == (4, 3)


def test_a_change_in_place_is_another_version():
    x = torch.zeros(2)
    before = version_of(x)
    x.add_(1)
    assert version_of(x) > before


def test_what_torch_compile_returns_has_the_module_inside():
    network = nn.Tanh()
    compiled = torch.compile(network)
    assert children_of(compiled)[COMPILED] is network
    assert is_compiler_loaded()


def test_transforms_are_seen():
    seen = []

    def watched(x):
        seen.append(is_transformed(x))
        return x.sum()

    x = torch.ones(2)
    watched(x)
    torch.func.grad(watched)(x)
    torch.func.vmap(watched)(x[None])
    with torch.utils.flop_counter.FlopCounterMode(display=False):
        watched(x)
    watched(x)
    assert seen == [False, True, True, True, False]


def test_modes_see_nothing_of_what_is_called_without_them():
    calls = []

    class Mode(TorchFunctionMode):
        def __torch_function__(self, func, types, args=(), kwargs=None):
            calls.append(func)
            return func(*args, **(kwargs or {}))

    x = torch.ones(2)
    with Mode():
        torch.tanh(x)
        assert len(calls) == 1
        with without_torch_function():
            torch.tanh(x)
        assert len(calls) == 1


@pytest.mark.parametrize(
    ("base", "kinds", "other"),
    [
        (Dropout, (nn.Dropout, nn.Dropout2d, nn.AlphaDropout, nn.FeatureAlphaDropout), nn.Tanh),
        (RunningNorm, (nn.BatchNorm2d, nn.SyncBatchNorm, nn.InstanceNorm1d), nn.LayerNorm),
        (InstanceNorm, (nn.InstanceNorm1d, nn.InstanceNorm3d), nn.BatchNorm1d),
    ],
)
def test_classes_of_layers(base, kinds, other):
    assert all(issubclass(kind, base) for kind in kinds)
    assert not issubclass(other, base)


# Attributes of modules, tensors and what torch.compile returns.
KNOWN = {
    "_backward_hooks", "_buffers", "_call_impl", "_forward_hooks", "_forward_pre_hooks",
    "_load_from_state_dict", "_modules", "_non_persistent_buffers_set", "_orig_mod", "_parameters",
    "_qkv_same_embed_dim", "_version",
}  # fmt: skip


def is_private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__")


def private(tree: ast.AST) -> set[str]:
    """Private names of torch's that a module uses: imported, read, or written as text."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "torch":
            names = [*(node.module or "").split("."), *(alias.name for alias in node.names)]
            found |= set(filter(is_private, names))
        elif isinstance(node, ast.Import):
            for name in (alias.name for alias in node.names if alias.name.startswith("torch.")):
                found |= set(filter(is_private, name.split(".")))
        elif isinstance(node, ast.Attribute):
            parts = ast.unparse(node).split(".")
            if node.attr in KNOWN or (parts[0] in ("torch", "nn") and is_private(node.attr)):
                found.add(node.attr)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            text = node.value
            if text in KNOWN or (text.startswith("torch._") and " " not in text):
                found.add(text)
    return found


@pytest.mark.parametrize(
    "source",
    [
        "from torch._dynamo import config",
        "from torch.nn.modules.batchnorm import _NormBase",
        "import torch._inductor.config",
        "torch._C._len_torch_dispatch_stack()",
        "nn.modules.dropout._DropoutNd",
        "self._modules['x']",
        "getattr(module, '_modules')",
        "'torch._dynamo' in sys.modules",
    ],
)
def test_private_parts_are_found(source):
    assert private(ast.parse(source))


def test_no_other_file_uses_them():
    where = Path(torch_internals.__file__)
    used = {
        str(path.relative_to(PACKAGE)): names
        for path in PACKAGE.rglob("*.py")
        if path != where and (names := private(ast.parse(path.read_text(encoding="utf-8"))))
    }
    assert used == {}, "put them into bo_act/dependencies/torch_internals.py"
    assert private(ast.parse(where.read_text(encoding="utf-8")))
