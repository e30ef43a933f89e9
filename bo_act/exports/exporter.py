"""The door to all exports."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, get_args

from bo_act.activations.expressions import Expression, canonical, parse
from bo_act.activations.formulas import latex
from bo_act.activations.module import Activation
from bo_act.activations.scales import Scaled
from bo_act.errors import ExportError, nearest
from bo_act.exports import native
from bo_act.exports.onnx_model import onnx_model
from bo_act.exports.source import Source

Target = Literal["torch", "jax", "keras", "onnx", "latex"]
TARGETS: tuple[str, ...] = get_args(Target)
"""What a function can be exported to."""

_WRITE: dict[str, Callable[[Source], str | bytes]] = {
    "torch": native.torch_code,
    "jax": native.jax_code,
    "keras": native.keras_code,
    "onnx": onnx_model,
    "latex": lambda source: latex(source.scaled) + "\n",
}


def export(
    expression: str | Expression | Activation, *, to: Target = "torch", name: str = "activation"
) -> str | bytes:
    """Export an activation function as standalone code, independent of bo-act.

    Args:
        expression: a text such as ``"mul(sigmoid(x),erf(x))"``, or a parsed tree: its canonical
            form is exported; or an ``Activation``, with the scales of a layer that it has learned
            and the numbers that normalize it.
        to: ``torch`` (a function and an ``nn.Module``), ``jax``, ``keras`` (Keras 3), ``latex``
            (a formula), or ``onnx`` (a model).
        name: of the function; the module has the same one in CapWords.

    Returns:
        Python code or a formula; for ``onnx`` the bytes of a model file.

    Raises:
        ExportError: the target or the name cannot be used, or there are scales for each channel.
        MissingExtraError: onnx is not installed.
        ExpressionError: the text is no expression.

    Examples:
        >>> source = export("mul(x,sigmoid(x))", to="torch")
        >>> "def " in source
        True
    """
    if to not in _WRITE:
        raise ExportError(
            f"cannot export to {to!r}{nearest(to, TARGETS)}; expected one of: {', '.join(TARGETS)}"
        )
    return _WRITE[to](Source(_with_numbers(expression), name))


def _with_numbers(given: str | Expression | Activation) -> Scaled:
    if not isinstance(given, Activation):
        return Scaled(canonical(parse(given) if isinstance(given, str) else given))
    functions = given.with_numbers()
    if len(functions) > 1:
        raise ExportError(
            f"expected one function for the whole layer, got {given} with {len(functions)} "
            "channels; export the network around it with torch.export or torch.onnx"
        )
    return functions[0]
