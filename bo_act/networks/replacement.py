"""Replacing every activation function of an existing network.

It finds modules (``layers``) and calls in forward methods (``calls``): by reading the code, or
exactly, by a forward pass on example inputs. Gates stay: sigmoids and hard sigmoids, softmax, and
attention. Arithmetic such as ``x.clamp(min=0)`` is not found.

In-place functions (``functional.relu(x, inplace=True)``, ``x.relu_()``, ``nn.ReLU(inplace=True)``)
stay in place, unless a forward pass on example inputs shows that the changed tensor is not read
again.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from bo_act.activations.expressions import Expression
from bo_act.activations.module import Activation
from bo_act.errors import NetworkError, nearest
from bo_act.networks.calls import (
    FUNCTIONS,
    GATES,
    StandIn,
    is_redirecting,
    plain,
    redirect,
    watched,
)
from bo_act.networks.in_place import Storing
from bo_act.networks.layers import (
    BETWEEN_0_AND_1,
    LEFT,
    Apart,
    Gated,
    Layer,
    full_name,
    is_activation,
    layers_of,
)
from bo_act.networks.scanning import calls_in

__all__ = ["Place", "Replaced", "replace_activations"]

Given = str | Expression | Activation | Callable[[], nn.Module]
"""What makes modules of an activation function."""
Selected = str | type[nn.Module] | Iterable[str | type[nn.Module]]
"""Names of modules, kinds of activation functions, or both."""
_LOOKED_FOR = (
    "activation modules of torch, timm and transformers, elementwise modules without parameters, "
    "and calls such as functional.relu(x) or x.tanh()"
)


@dataclass(frozen=True)
class Place:
    """A place of an activation function in a network.

    Attributes:
        name: of the module; for a call that was left, of the calling module.
        kind: original class or call, such as ``ReLU`` or ``functional.relu``.
        reason: why it was left; empty if it was replaced.
    """

    name: str
    kind: str
    reason: str = ""


@dataclass(frozen=True, repr=False)
class Replaced:
    """Result of ``replace_activations``.

    Attributes:
        replaced: the places of the new modules; ``network.get_submodule(place.name)`` is one.
        left: what resembles an activation function and stayed, with the reason.

    Examples:
        >>> import torch, bo_act
        >>> network = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.ReLU())
        >>> bo_act.replace_activations(network, "tanh(x)").replaced[0].kind
        'ReLU'
    """

    replaced: tuple[Place, ...]
    left: tuple[Place, ...]

    def __repr__(self) -> str:
        count = len(self.replaced)
        functions = "activation function" if count == 1 else "activation functions"
        lines = [f"Replaced {count} {functions}, left {len(self.left)}"]
        lines += [f"  {line}" for line in _summary(self.replaced)]
        return "\n".join(lines + [f"  left: {line}" for line in _summary(self.left)])


def _summary(places: Iterable[Place]) -> list[str]:
    """Return one line per place; places that differ only in numbers share a line."""
    groups: dict[tuple[str, str, str], list[Place]] = {}
    for place in places:
        pattern = re.sub(r"(?<![^.])\d+(?![^.])", "*", place.name)
        groups.setdefault((pattern, place.kind, place.reason), []).append(place)
    return [
        f"{pattern if len(group) > 1 else group[0].name}  {kind}"
        f"{f' ({len(group)} times)' if len(group) > 1 else ''}{f': {reason}' if reason else ''}"
        for (pattern, kind, reason), group in groups.items()
    ]


def replace_activations(
    network: nn.Module,
    activation: Given | Mapping[str, Given],
    *,
    only: Selected | None = None,
    except_: Selected | None = None,
    inputs: Any = None,
) -> Replaced:
    """Replace the activation functions of any network in place.

    It replaces activation modules of torch, timm and transformers, your own elementwise modules
    without parameters, and calls of torch's activation functions such as ``functional.relu(x)`` or
    ``x.tanh()``. In gated units (``nn.GLU``, SwiGLU, GEGLU) the nonlinearity is replaced and the
    product stays. Sigmoid gates, softmax, attention and recurrent layers stay, too.

    Without ``inputs``, calls are found by reading the code of forward methods, and in-place
    functions stay in place. With ``inputs``, one forward pass of a copy in training mode finds
    calls exactly, including those chosen at run time.

    You can replace again; names and kinds stay those of the original network.

    Args:
        network: changed in place; after an error it is unchanged.
        activation: an ``Activation``, the text of an expression, or a function or class that
            makes a module, a fresh one for each place; or a mapping of prefixes of module names
            to these; the longest prefix counts, and ``""`` means the rest.
        only: replace only these: names of modules (including their children) and kinds: classes,
            or names such as ``"gelu"`` for modules and calls.
        except_: leave these; as for ``only``.
        inputs: a tensor, a tuple of arguments, or a dict of keyword arguments for the network.

    Returns:
        The replaced places, and those left.

    Raises:
        NetworkError: there is nothing to replace, a name is unknown, or ``activation`` does not
            make fresh modules.
        ExpressionError: a text is not an expression.

    Examples:
        >>> from torch import nn
        >>> import bo_act
        >>> network = nn.Sequential(nn.Linear(2, 8), nn.ReLU(), nn.Linear(8, 8), nn.GELU())
        >>> bo_act.replace_activations(network, "mul(x,tanh(x))", except_="gelu")
        Replaced 1 activation function, left 1
          1  ReLU
          left: 3  GELU: named in except_
        >>> network[1]
        Activation(mul(x,tanh(x)))
    """
    if not isinstance(network, nn.Module):
        raise NetworkError(f"expected a torch.nn.Module, got {type(network).__name__}")
    stages = activation if isinstance(activation, Mapping) else {"": activation}
    made = {name: _maker(one) for name, one in stages.items()}
    if not made:
        raise NetworkError("expected at least one activation function, got an empty mapping")
    choice = _Choice(made, _selected(only, "only"), _selected(except_, "except_") or ())
    return replace(network, choice.maker, choice=choice, inputs=inputs)[0]


def _maker(given: Any) -> Callable[[], nn.Module]:
    if isinstance(given, str | Expression):
        return Activation(given)
    if callable(given) and (isinstance(given, Activation) or not isinstance(given, nn.Module)):
        maker: Callable[[], nn.Module] = given
        return maker
    raise NetworkError(
        "expected an Activation, the text of an expression, or a function or class that makes "
        f"modules, got {given!r:.60}" + ("; give the class" if isinstance(given, nn.Module) else "")
    )


def _selected(given: Any, what: str) -> tuple[str | type, ...] | None:
    if given is None:
        return None
    entries = (given,) if isinstance(given, str | type) else given
    if not isinstance(entries, Iterable):
        entries = (entries,)
    for one in (checked := tuple(entries)):
        if not (isinstance(one, str) or (isinstance(one, type) and issubclass(one, nn.Module))):
            raise NetworkError(
                f"{what}: expected names of modules, or kinds such as nn.ReLU or 'relu', "
                f"got {one!r:.60}"
            )
    return checked


@dataclass(frozen=True)
class _Found:
    """A replaceable layer or call."""

    name: str
    kinds: tuple[str, ...]
    reason: str
    layer: Layer | None = None

    @property
    def kind(self) -> str:
        return self.kinds[0]

    def is_within(self, name: str) -> bool:
        return name in ("", self.name) or self.name.startswith(f"{name}.")

    def is_of(self, kind: str | type) -> bool:
        if isinstance(kind, str):
            return plain(self.kind) == plain(kind)
        return full_name(kind) in self.kinds[1:]


class _Choice:
    """The caller's choice of replacements."""

    def __init__(
        self,
        makers: Mapping[str, Callable[[], nn.Module]],
        only: tuple[str | type, ...] | None = None,
        except_: tuple[str | type, ...] = (),
    ) -> None:
        self.makers, self.only, self.except_ = makers, only, except_

    def _stage(self, one: _Found) -> str | None:
        return max((name for name in self.makers if one.is_within(name)), key=len, default=None)

    def maker(self, one: _Found) -> Callable[[], nn.Module]:
        return self.makers[self._stage(one)]  # type: ignore[index]

    def why_left(self, one: _Found) -> str:
        if one.reason:
            return one.reason
        if self.only is not None and not any(_is_meant(entry, one) for entry in self.only):
            return "not named in only"
        if any(_is_meant(entry, one) for entry in self.except_):
            return "named in except_"
        return "" if self._stage(one) is not None else "in no stage of the mapping"

    def check(self, network: nn.Module, found: list[_Found]) -> None:
        """Refuse unknown names."""
        names = [name for name, _ in network.named_modules() if name]
        kinds = {plain(one.kind) for one in found}
        for what, entries in (("only", self.only or ()), ("stage", tuple(self.makers))):
            for entry in entries:
                meant = [
                    one
                    for one in found
                    if (one.is_within(str(entry)) if what == "stage" else _is_meant(entry, one))
                ]
                if any(not one.reason for one in meant):
                    continue
                if entry and meant:
                    raise NetworkError(
                        f"{what} {_shown(entry)}: {meant[0].kind} at {meant[0].name or '(root)'} "
                        f"cannot be replaced: {meant[0].reason}"
                    )
                if entry in names:
                    raise NetworkError(
                        f"{what} {_shown(entry)}: no activation function there; {_contents(found)}"
                    )
                if entry and isinstance(entry, str):  # a missing class is no mistake
                    raise _unknown(what, entry, names, kinds, found)
        known = kinds | {plain(name) for name in (*FUNCTIONS.values(), *GATES.values(), *LEFT)}
        for entry in self.except_:
            if isinstance(entry, str) and entry not in names and plain(entry) not in known:
                raise _unknown("except_", entry, names, known, found)


def _is_meant(entry: str | type, one: _Found) -> bool:
    return one.is_of(entry) or (isinstance(entry, str) and one.is_within(entry))


def _shown(entry: str | type) -> str:
    return entry.__name__ if isinstance(entry, type) else repr(entry)


def _contents(found: list[_Found]) -> str:
    kinds = dict.fromkeys(one.kind for one in found if not one.reason)
    return f"the network has {', '.join(kinds)}" if kinds else f"looked for {_LOOKED_FOR}"


def _unknown(
    what: str, entry: str, names: list[str], kinds: set[str], found: list[_Found]
) -> NetworkError:
    hint = nearest(entry, [*names, *kinds])
    return NetworkError(
        f"{what}: {entry!r} is neither a module of the network nor a kind of activation function"
        f"{hint}; {_contents(found)}"
    )


def replace(
    network: nn.Module,
    maker: Callable[[_Found], Callable[[], nn.Module]],
    *,
    choice: _Choice | None = None,
    inputs: Any = None,
) -> tuple[Replaced, Any]:
    """Replace activation functions; return the replacements and the outputs of the trial pass.

    A module with several names gets one replacement per name; a module called several times gets
    one, and calls of one kind in a forward method share one. timm's normalization layers with an
    activation become a sequence of both.
    """
    if is_activation(network):
        raise NetworkError("the network is an activation layer itself")
    choice = choice or _Choice({"": nn.Identity})
    found = [_Found(one.name, one.kinds, one.reason, one) for one in layers_of(network)]
    outputs, again = None, None
    if inputs is None:
        found += _scanned(network, found)
    else:
        calls, again, outputs = _tried(network, found, choice, inputs)
        found += calls
    choice.check(network, found)
    left = {one: reason for one in found if (reason := choice.why_left(one))}
    chosen = [one for one in found if one not in left]
    if not chosen:
        raise NetworkError(_nothing(network, left, inputs))
    fresh = {one: _fresh(maker(one), one) for one in chosen}
    if len({id(module) for module in fresh.values()}) < len(fresh):
        raise NetworkError(
            "expected a fresh module for each place, got the same module twice; give a function "
            "that makes a new one in each call"
        )
    names = _put(network, fresh, left, again)
    replaced = tuple(Place(names[one], one.kind) for one in chosen)
    return Replaced(replaced, tuple(Place(o.name, o.kind, why) for o, why in left.items())), outputs


def _nothing(network: nn.Module, left: Mapping[_Found, str], inputs: Any) -> str:
    modules = sum(1 for _ in network.modules())
    text = f"nothing to replace in {type(network).__name__}: looked for {_LOOKED_FOR}, in "
    text += f"{modules} {'modules' if modules > 1 else 'module'}"
    if left:
        some = [f"{one.kind} at {one.name or '(root)'} ({why})" for one, why in left.items()]
        text += f"; left {', '.join(some[:3])}{' and others' if len(some) > 3 else ''}"
    if inputs is None:
        text += "; with inputs=..., bo-act also finds calls that are chosen at run time"
    return text


def _fresh(maker: Callable[[], nn.Module], one: _Found) -> nn.Module:
    module = maker()
    if not isinstance(module, nn.Module):
        raise NetworkError(
            f"expected a function that makes modules, got one that made {type(module).__name__}"
        )
    made: Any = module
    made.stands_for = one.kinds
    return module


# --- finding calls --------------------------------------------------------------------------


_OF_A_LOSS = "perhaps of a loss; with inputs=..., the function that forward calls is replaced"


def _call(network: nn.Module, place: str, call: str, *, is_seen: bool) -> _Found:
    reason = BETWEEN_0_AND_1 if call in GATES.values() else ""
    if not is_seen and plain(call) == "logsigmoid":
        reason = _OF_A_LOSS
    if not reason and "forward" in vars(network.get_submodule(place)):
        reason = "called by a forward that is set on the module instead of its class"
    return _Found(place, (call,), reason)


def _is_new(network: nn.Module, place: str, call: str, layers: list[_Found]) -> bool:
    """Tell whether a call belongs to no layer, and was not replaced before."""
    for one in layers:
        layer = one.layer
        if layer is None:
            continue
        is_function = layer.key == "activation" and not layer.kinds[1:]  # of a TransformerLayer
        if place == layer.parent if is_function else _is_in(place, one.name):
            return False
    module: Any = network.get_submodule(place)
    return not (is_redirecting(module) and plain(call) in module.activation_of_calls)


def _is_in(place: str, name: str) -> bool:
    return place == name or place.startswith(f"{name}.")


def _scanned(network: nn.Module, layers: list[_Found]) -> list[_Found]:
    calls = [
        (place, call)
        for place, module in network.named_modules()
        if not isinstance(module, torch.jit.ScriptModule)
        for call in calls_in(module)
    ]
    return _by_kind(network, calls, layers, is_seen=False)


def _by_kind(
    network: nn.Module, calls: list[tuple[str, str]], layers: list[_Found], *, is_seen: bool
) -> list[_Found]:
    """Return one item for all calls of a kind in a module: ``x.relu()`` and ``torch.relu(x)``."""
    found: dict[tuple[str, str], _Found] = {}
    for place, call in calls:
        if _is_new(network, place, call, layers):
            found.setdefault((place, plain(call)), _call(network, place, call, is_seen=is_seen))
    return list(found.values())


def _tried(
    network: nn.Module, layers: list[_Found], choice: _Choice, inputs: Any
) -> tuple[list[_Found], set[str], Any]:
    """Run a copy in training mode, in which some networks return or call more."""
    trial = copy.deepcopy(network).train()
    for one in layers:
        if one.layer and one.layer.in_place and not one.layer.inside_norm:
            if not choice.why_left(one):
                setattr(trial.get_submodule(one.layer.parent), one.layer.key, StandIn(one.name))
        elif one.layer and one.layer.in_place and not choice.why_left(one):
            trial.get_submodule(one.name.rpartition(".")[0]).act = StandIn(one.name)

    def will_be(place: str, call: str) -> bool:
        if not _is_new(network, place, call, layers):
            return False
        return not choice.why_left(_call(network, place, call, is_seen=True))

    devices = range(torch.cuda.device_count()) if torch.cuda.is_available() else ()
    with torch.random.fork_rng(devices), torch.no_grad(), watched(trial, will_be) as watch:
        if isinstance(inputs, Mapping):
            outputs = trial(**inputs)
        else:
            outputs = trial(*inputs) if isinstance(inputs, tuple) else trial(inputs)
    watch.reads.look(outputs)
    calls = _by_kind(network, sorted(watch.found), layers, is_seen=True)
    return calls, watch.reads.again, outputs


# --- putting modules in place ---------------------------------------------------------------


def _put(
    network: nn.Module,
    fresh: Mapping[_Found, nn.Module],
    left: Mapping[_Found, str],
    again: set[str] | None,
) -> dict[_Found, str]:
    """Put fresh modules in their places; return their names.

    ``again`` has the places whose changed input is read again; None if unknown.
    """
    calls = {one: module for one, module in fresh.items() if one.layer is None}
    redirects = bool(calls) or any(map(is_redirecting, network.modules()))
    some = next(network.parameters(), None)
    training = network.training
    names = {}
    for one, module in fresh.items():
        module.train(training)
        if some is not None:
            module.to(some.device, some.dtype if some.is_floating_point() else None)
        stores = again is None or one.name in again
        if one.layer is None:
            kind = plain(one.kind)
            redirect(network.get_submodule(one.name), {kind: Apart(module)}, stores=stores)
            names[one] = f"{one.name}.activation_of_calls.{kind}.activation".lstrip(".")
        else:
            names[one] = _put_layer(network, one.layer, module, redirects, stores)
    if redirects:
        for one in left:
            _shield(network, one)
    for module in network.modules():
        if isinstance(module, nn.TransformerEncoder) and any(
            not getattr(layer, "activation_relu_or_gelu", 1) for layer in module.layers
        ):
            module.use_nested_tensor = False
    return names


def _put_layer(
    network: nn.Module, layer: Layer, module: nn.Module, redirects: bool, stores: bool
) -> str:
    parent: Any = network.get_submodule(layer.parent)
    name = f"{layer.parent}.{layer.key}".lstrip(".")
    if isinstance(parent, Apart | Storing | Gated):  # from an earlier replacement
        setattr(parent, layer.key, module)
        return name
    before = getattr(parent, layer.key)
    whole, inner = module, ""
    if redirects:
        whole, inner = Apart(whole), ".activation"
    if layer.in_place and stores:
        whole, inner = Storing(whole), f".activation{inner}"
    if isinstance(before, nn.GLU):
        whole, inner = Gated(whole, before.dim), f".activation{inner}"
    if layer.inside_norm:
        before.act = nn.Identity()
        whole, inner = nn.Sequential(before, whole), f".1{inner}"
    setattr(parent, layer.key, whole)
    if isinstance(parent, nn.TransformerEncoderLayer):
        # Else torch computes the layer in one kernel, with its own ReLU or GELU.
        parent.activation_relu_or_gelu = 0
    return name + inner


def _shield(network: nn.Module, one: _Found) -> None:
    """Let unreplaced modules make their own calls, although an outer module redirects them."""
    if one.layer is None:
        redirect(network.get_submodule(one.name), {}, stores=False)
        return
    parent = network.get_submodule(one.layer.parent)
    module = getattr(parent, one.layer.key)
    if isinstance(parent, Apart) or isinstance(module, torch.jit.ScriptModule):
        return
    if not isinstance(module, nn.Module):
        redirect(parent, {}, stores=False)
    elif one.layer.inside_norm:
        redirect(module.act, {}, stores=False)  # type: ignore[arg-type]
    elif isinstance(module, Activation):
        setattr(parent, one.layer.key, Apart(module))
    else:
        redirect(module, {}, stores=False)


def check_logits(outputs: Any, num_classes: int) -> None:
    """Refuse a network that does not return logits in training.

    Args:
        outputs: of the trial pass on two images.
        num_classes: number of logits per image.

    Raises:
        NetworkError: it does not.
    """
    if not isinstance(outputs, Tensor) or outputs.shape != (2, num_classes):
        came = tuple(outputs.shape) if isinstance(outputs, Tensor) else type(outputs).__name__
        raise NetworkError(
            f"expected logits (2, {num_classes}) for two images in training, got {came}"
        )
