"""ONNX: a model with the input x and the output y, float32.

Its form asks for a rank, which is 1; every node is elementwise, so that the graph can be merged
into a network at a value of any rank (``onnx.compose.merge_models``).
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np

from bo_act.activations.evaluation import plan
from bo_act.dependencies.extras import require_extra
from bo_act.exports.primitives import VALUES
from bo_act.exports.source import Source
from bo_act.exports.terms import Term, Writer

OPSET = 18
"""Of the models; read by onnxruntime 1.14 and newer."""

_IR_VERSION = 8

_NATIVE: dict[str, tuple[str, dict[str, Any]]] = {
    "identity": ("Identity", {}),
    "negative": ("Neg", {}),
    "abs": ("Abs", {}),
    "reciprocal": ("Reciprocal", {}),
    "exp": ("Exp", {}),
    "sinh": ("Sinh", {}),
    "cosh": ("Cosh", {}),
    "arctan": ("Atan", {}),
    "relu": ("Relu", {}),
    "leakyrelu": ("LeakyRelu", {"alpha": 0.01}),
    "hard_sigmoid": ("HardSigmoid", {"alpha": 0.2, "beta": 0.5}),
    "add": ("Add", {}),
    "sub": ("Sub", {}),
    "mul": ("Mul", {}),
    "div": ("Div", {}),
    "pow": ("Pow", {}),
    "max": ("Max", {}),
    "min": ("Min", {}),
}
_FOLDED = {"sum_n": "add", "prod_n": "mul", "max_n": "max", "min_n": "min"}
_PRIMITIVES = {
    "add": "Add",
    "sub": "Sub",
    "mul": "Mul",
    "div": "Div",
    "neg": "Neg",
    "abs": "Abs",
    "exp": "Exp",
    "log": "Log",
    "sqrt": "Sqrt",
    "max": "Max",
    "min": "Min",
    "greater": "Greater",
    "less": "Less",
    "equal": "Equal",
    "where": "Where",
}


class _Nodes(Writer):
    """Nodes and constants of a graph, without duplicates."""

    def __init__(self, helper: Any) -> None:
        self.nodes: list[Any] = []
        self.constants: dict[str, Any] = {}
        self._helper = helper
        self._known: dict[tuple[Any, ...], str] = {}

    def call(self, name: str, *arguments: str) -> str:
        return self.node(_PRIMITIVES[name], {}, *arguments)

    def constant(self, value: float) -> str:
        name = f"c_{value!r}"
        if name not in self.constants:
            self.constants[name] = self._helper.make_tensor(
                name, self._helper.np_dtype_to_tensor_dtype(np.dtype("float32")), [], [value]
            )
        return name

    def node(self, kind: str, options: dict[str, Any], *arguments: str) -> str:
        """Add a node; return the name of its output."""
        key = (kind, tuple(options.items()), arguments)
        if key not in self._known:
            out = self._known[key] = f"v{len(self._known) + 1}"
            self.nodes.append(self._helper.make_node(kind, list(arguments), [out], **options))
        return self._known[key]


def onnx_model(source: Source) -> bytes:
    """Return a serialized model.

    Raises:
        MissingExtraError: onnx is not installed.
    """
    require_extra("onnx", "an ONNX model")
    from onnx import TensorProto, checker, helper

    nodes = _Nodes(helper)
    first, *factors = source.factors
    values = [_affine(nodes, "x", first)]
    for (name, operands), factor in zip(plan(source.expression), factors, strict=True):
        step = _step(nodes, name, [values[i] for i in operands])
        values.append(_affine(nodes, step, factor))
    result = _affine(nodes, values[-1], source.scaled.output, source.scaled.shift)
    nodes.nodes.append(helper.make_node("Identity", [result], ["y"]))
    graph = helper.make_graph(
        nodes.nodes,
        source.name,
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n"])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n"])],
        initializer=list(nodes.constants.values()),
        doc_string=source.description(
            "float32. What ONNX lacks (expm1, erfc, Bessel functions) is written out, accurate to "
            "a relative 1e-6 or so."
        ),
    )
    model = helper.make_model(
        graph,
        producer_name="bo-act",
        ir_version=_IR_VERSION,
        opset_imports=[helper.make_opsetid("", OPSET)],
    )
    checker.check_model(model, full_check=True)
    return bytes(model.SerializeToString())


def _affine(nodes: _Nodes, value: str, factor: float, shift: float = 0.0) -> str:
    if shift:
        value = nodes.call("sub", value, nodes.constant(shift))
    return value if factor == 1.0 else nodes.call("mul", nodes.constant(factor), value)


def _step(nodes: _Nodes, name: str, arguments: list[str]) -> str:
    if name in _FOLDED:
        kind, options = _NATIVE[_FOLDED[name]]
        return functools.reduce(lambda a, b: nodes.node(kind, options, a, b), arguments)
    if name in _NATIVE:
        kind, options = _NATIVE[name]
        return nodes.node(kind, options, *arguments)
    return VALUES[name](*(Term(nodes, argument) for argument in arguments)).text
