"""Activation: an expression as a torch module."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from typing import TYPE_CHECKING, Any, overload

import torch
from torch import Tensor, nn
from torch.fx import Proxy
from torch.nn.parameter import is_lazy

from bo_act.activations.evaluation import moments, plan
from bo_act.activations.expressions import Expression, parse
from bo_act.activations.fused import Fused
from bo_act.activations.operators import OPERATORS
from bo_act.activations.scales import Learnable, Scaled, Scales, make_scales, scaled
from bo_act.dependencies.torch_internals import children_of
from bo_act.errors import ExpressionError
from bo_act.html import Markup, escape


class Activation(nn.Module):
    """An activation function, elementwise, without parameters unless ``learnable``.

    Both a module and a factory: called without an argument (or with the name of a place), it
    returns a fresh module of the same function. So it can replace ``nn.SiLU()`` as well as
    ``nn.SiLU``.

    Works in every floating dtype, on every device, under autocast and ``torch.compile``. What
    works with ``nn.SiLU`` works with it: later layers may change the output in place, and you
    trace, script, export, save and load the module like one of torch's own.

    Half-precision input is computed in float32 internally and returned in its own dtype, since
    intermediate values (in ``exp`` of ``square``, say) overflow half precision long before the
    result does.

    Args:
        expression: a text such as ``"mul(sigmoid(x),erf(x))"``, or a parsed tree.
        normalize: shift and scale the output to mean 0 and variance 1 under x ~ N(0, 1).
        fused: compile the function to one kernel per pass. A single operator already is one and is
            not compiled. If compilation fails, the function runs operator by operator, and
            ``why_not_fused`` has the reason.
        learnable: train scales of input and output, both starting at 1, with the network: one
            pair for the ``"layer"``, or one for each ``"channel"``. The first input sets the
            number of channels: as with torch's lazy layers, make one forward pass before you give
            the parameters to an optimizer. Such functions are not fused. Exclude scales from
            weight decay.
        scale_operators: with ``learnable``, a scale at each inner operator as well.
        channel_dim: where channels are; default: dimension 1 of inputs with four axes and more,
            such as images (b, c, h, w), else the last one.

    Attributes:
        scales: the learned scales, None without.

    Raises:
        ExpressionError: the text is not an expression, ``normalize`` is set for a constant
            function or one without finite mean and variance, or ``learnable`` is unknown.

    Examples:
        >>> import torch, bo_act
        >>> activation = bo_act.Activation("mul(x,sigmoid(x))")
        >>> activation(torch.tensor([0.0, 1.0]))
        tensor([0.0000, 0.7311])
        >>> network = torch.nn.Sequential(torch.nn.Linear(4, 8), activation())
    """

    if TYPE_CHECKING:  # torch.jit reads what is annotated at run time, and knows no such type
        scales: Scales | None

    __jit_unused_properties__ = ("why_not_fused",)

    _FROM_EXPRESSION = (
        "expression", "normalize", "fused", "_plan", "_functions", "_result", "_is_composed",
        "_shift", "_scale", "_script",
    )  # fmt: skip

    def __init__(
        self,
        expression: str | Expression,
        *,
        normalize: bool = False,
        fused: bool = False,
        learnable: Learnable | None = None,
        scale_operators: bool = False,
        channel_dim: int | None = None,
    ) -> None:
        super().__init__()
        self.expression = parse(expression) if isinstance(expression, str) else expression
        self.normalize = normalize
        self.fused = fused
        self._plan = plan(self.expression)
        self._functions = [OPERATORS[name].function for name, _ in self._plan]
        self._result = _last_operator(self.expression)
        self._is_composed = normalize or (len(self._plan) > 1 and self._result is not None)
        self.learnable = learnable
        self.scale_operators = scale_operators
        self.channel_dim = channel_dim
        inner = max(len(self._plan) - 1, 0) if scale_operators else 0
        # Always as a module: a plain None would hide a pickled one.
        self.register_module("scales", make_scales(learnable, inner, channel_dim=channel_dim))
        self._shift, self._scale = 0.0, 1.0
        if normalize:
            mean, variance = moments(self.expression)
            deviation = variance**0.5
            # A constant's variance is rounding error, not zero.
            if not deviation > 1e-9 * max(1.0, abs(mean)) or deviation == float("inf"):
                raise ExpressionError(
                    f"cannot normalize {self.expression}: under a standard-normal input its mean "
                    f"is {mean:g} and its variance {variance:g}; expected both finite and the "
                    "variance above zero. Use normalize=False"
                )
            self._shift, self._scale = mean, 1.0 / deviation

    @overload
    def __call__(self, x: str = "", *, inplace: bool = False) -> Activation: ...
    @overload
    def __call__(self, x: Tensor) -> Tensor: ...
    def __call__(self, x: Tensor | str = "", *, inplace: bool = False) -> Tensor | Activation:
        """Evaluate, as ``forward``; or return a fresh module if there is nothing to evaluate.

        Args:
            x: pre-activations; or nothing, or the name of a place in a network.
            inplace: accepted for compatibility with ``nn.SiLU`` and ignored.
        """
        del inplace
        if isinstance(x, str):
            fresh = Activation(
                self.expression,
                normalize=self.normalize,
                fused=self.fused,
                learnable=self.learnable,
                scale_operators=self.scale_operators,
                channel_dim=self.channel_dim,
            )
            return fresh.train(self.training)
        value: Tensor = super().__call__(x)
        return value

    def forward(self, x: Tensor) -> Tensor:
        """Evaluate elementwise.

        Args:
            x: pre-activations, any shape, floating dtype.

        Returns:
            Values, same shape and dtype.
        """
        if torch.jit.is_scripting():  # type: ignore[attr-defined]
            if x.dtype == torch.float16 or x.dtype == torch.bfloat16:  # noqa: PLR1714
                return self._script(x.float()).to(x.dtype)
            return self._script(x)
        else:  # noqa: RET505 - what stands here is not scripted
            return self._evaluate(x)

    def _evaluate(self, x: Tensor) -> Tensor:
        traced: Any = x
        if isinstance(traced, Proxy):
            text = str(self.expression)
            tracer: Any = traced.tracer
            if self.scales is not None and not tracer.path_of_module(self):
                raise ExpressionError(
                    "a function with learned scales cannot be traced alone; trace a network around "
                    "it, such as nn.Sequential(activation)"
                )
            node: Tensor = _as_node(self, traced, call, text, self.normalize, self.fused)
            return node
        # Inside a compiled network the outer compiler sees the single operators.
        if self._can_be_fused and not torch.compiler.is_compiling():
            return _fused(str(self.expression), self.normalize)(x)
        narrow = x.dtype in (torch.float16, torch.bfloat16)
        wide = x.float() if narrow else x
        if self.scales is None:
            value = self._value(wide)
        else:
            first, *inner, last = self.scales(wide)
            value = self._value(wide * first, inner) * last
        if narrow:
            return value.to(x.dtype)
        return value.clone() if self._is_needed_as_it_is() else value

    def _value(self, x: Tensor, scales: Sequence[Tensor] = ()) -> Tensor:
        """Evaluate the operators, in the dtype of x; inner ones times their scales."""
        values = [x]
        for step, (function, (_, operands)) in enumerate(
            zip(self._functions, self._plan, strict=True)
        ):
            value = function(*[values[i] for i in operands])
            values.append(value * scales[step] if step < len(scales) else value)
        value = values[-1]
        return (value - self._shift) * self._scale if self.normalize else value

    @property
    def _can_be_fused(self) -> bool:
        return self.fused and self._is_composed and self.scales is None

    def _is_needed_as_it_is(self) -> bool:
        """Tell whether the value is x itself, or saved by torch for the backward pass.

        Such a value is copied, because later layers may change the output in place.
        """
        if self.normalize or self.scales is not None:
            return False
        return self._result is None or (
            OPERATORS[self._result].keeps_output
            and (torch.is_grad_enabled() or torch.jit.is_tracing())  # type: ignore[attr-defined]
        )

    def with_numbers(self) -> list[Scaled]:
        """Return the function with its learned and normalizing numbers.

        Returns:
            One function; with scales per channel, one per channel.

        Raises:
            ExpressionError: there was no input yet, so there are no channels.
        """
        if self.scales is None:
            return [Scaled(self.expression, shift=self._shift, output=self._scale)]
        if any(map(is_lazy, self.scales.parameters())):
            raise ExpressionError(f"{self} has no channels before its first input")
        rows = self.scales.values()
        functions = [scaled(self.expression, row, operators=self.scale_operators) for row in rows]
        return [replace(f, shift=self._shift, output=f.output * self._scale) for f in functions]

    @property
    def why_not_fused(self) -> str | None:
        """Why the function is not compiled; None if it is, or need not be."""
        if self.fused and self.scales is not None:
            return "its scales are learned"
        if not self._can_be_fused:
            return None
        return _fused(str(self.expression), self.normalize).why_not

    def extra_repr(self) -> str:
        """Show the expression inside ``Activation(...)``."""
        names = ("normalize", "fused", "learnable", "scale_operators")
        given = {name: value for name in names if (value := getattr(self, name))}
        return str(self.expression) + "".join(f", {name}={v!r}" for name, v in given.items())

    def __repr__(self) -> str:
        return f"Activation({self.extra_repr()})"

    def _repr_html_(self) -> str:
        """Show the graph and the formula in a notebook."""
        from bo_act.activations.formulas import mathml
        from bo_act.activations.plots import graph

        mean, variance = moments(self.expression)
        said = f"mean {mean:.4g}, variance {variance:.4g} under x ~ N(0, 1)"
        if self.normalize:
            said += "; its output is shifted and scaled to mean 0, variance 1"
        side = Markup(
            f"<div>{mathml(self.expression)}"
            f'<div style="margin:0.5em 0"><code>{escape(str(self.expression))}</code></div>'
            f'<div style="opacity:0.7">{said}</div></div>'
        )
        return Markup(
            '<div style="display:flex;flex-wrap:wrap;gap:1.2em;align-items:center">'
            f"{graph(self.expression)}{side}</div>"
        )

    def __reduce__(self) -> tuple[Any, ...]:
        # As text: some operators are local functions, which cannot be pickled or copied.
        state = {
            name: value for name, value in vars(self).items() if name not in self._FROM_EXPRESSION
        }
        options: tuple[Any, ...] = (str(self.expression), self.normalize, self.fused)
        return _rebuild, options if type(self) is Activation else (*options, type(self)), state

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        if "scales" not in children_of(self):  # of an earlier version
            self.register_module("scales", None)

    def __prepare_scriptable__(self) -> Activation:
        """Prepare for ``torch.jit.script``, which calls this."""
        if self.scales is not None:
            raise ExpressionError(
                "a function with learned scales cannot be scripted; use torch.compile or "
                "torch.export"
            )
        if "_script" not in vars(self):
            self._script = _scripted(self._evaluate)
        return self


def activations_of(
    function: Expression | Mapping[str, Expression], options: Mapping[str, Any]
) -> Activation | dict[str, Activation]:
    """Return a module of a function, or of several by name, made with options."""
    if isinstance(function, Expression):
        return Activation(function, **options)
    return {name: Activation(expression, **options) for name, expression in function.items()}


def _rebuild(
    text: str, normalize: bool = False, fused: bool = False, kind: type[Activation] | None = None
) -> Activation:
    kind = Activation if kind is None else kind
    if not (isinstance(text, str) and isinstance(kind, type) and issubclass(kind, Activation)):
        raise ExpressionError(
            f"expected an expression as text and an activation class, got {text!r:.60} and "
            f"{kind!r:.60}"
        )
    made = kind.__new__(kind)
    Activation.__init__(made, text, normalize=bool(normalize), fused=bool(fused))
    return made


# Safe for torch.load: an Activation is rebuilt from its text.
torch.serialization.add_safe_globals(
    [(cls, f"{__name__}.{cls.__name__}") for cls in (Activation, _rebuild)]
)


def call(x: Tensor, text: str, normalize: bool = False, fused: bool = False) -> Tensor:
    """Evaluate a function given as text: what an ``Activation`` traced by itself becomes."""
    value: Tensor = _rebuild(text, normalize, fused)(x)
    return value


@lru_cache(maxsize=256)
def _fused(text: str, normalize: bool) -> Fused:
    """Return a function compiled once, however many modules use it."""
    return Fused(Activation(text, normalize=normalize).forward)


def _last_operator(expression: Expression) -> str | None:
    """Return the operator that makes the output's tensor; None if that is x itself."""
    while expression.name == "identity":
        (expression,) = expression.arguments
    return expression.name if expression.arguments else None


# --- what torch.fx and torch.jit see ---------------------------------------------------------


def _as_node(module: nn.Module, x: Proxy, function: Callable[..., Tensor], *options: Any) -> Any:
    """Put a module into a graph of torch.fx as one node, like the activation layers of torch.

    Args:
        module: one of the network that is traced.
        x: its input.
        function: called instead where the module is the network itself.
        *options: further arguments of that function.
    """
    tracer: Any = x.tracer
    if path := tracer.path_of_module(module):
        return tracer.create_proxy("call_module", path, (x,), {})
    return tracer.create_proxy("call_function", function, (x, *options), {})


def _scripted(function: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """Return an elementwise function as TorchScript, for inputs of float32 and wider."""

    def alone(x: Tensor) -> Tensor:  # torch.jit traces no methods
        return function(x)

    sample = torch.ones(2, device="cpu", dtype=torch.float32, requires_grad=True)
    with warnings.catch_warnings(), torch.enable_grad():
        warnings.simplefilter("ignore")  # TorchScript's deprecation
        traced: Callable[[Tensor], Tensor] = torch.jit.trace(alone, sample, check_trace=False)
    return traced
