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
from torch import nn

from bo_act.activations.expressions import Expression
from bo_act.activations.module import Activation
from bo_act.errors import NetworkError
from bo_act.networks.calls import (
    GATES,
    StandIn,
    is_redirecting,
    plain,
    redirect,
    watched,
)
from bo_act.networks.choice import LOOKED_FOR, Choice, Selected, Site, selected
from bo_act.networks.in_place import Storing
from bo_act.networks.layers import (
    BETWEEN_0_AND_1,
    Apart,
    Gated,
    Layer,
    is_activation,
    layers_of,
)
from bo_act.networks.scanning import calls_in

__all__ = ["Place", "Replaced", "replace_activations"]

Given = str | Expression | Activation | Callable[[], nn.Module]
"""What makes modules of an activation function."""


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
    makers = {name: _maker(given) for name, given in stages.items()}
    if not makers:
        raise NetworkError("expected at least one activation function, got an empty mapping")
    choice = Choice(makers, selected(only, "only"), selected(except_, "except_") or ())
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


def replace(
    network: nn.Module,
    maker: Callable[[Site], Callable[[], nn.Module]],
    *,
    choice: Choice | None = None,
    inputs: Any = None,
) -> tuple[Replaced, Any]:
    """Replace activation functions; return the replacements and the outputs of the trial pass.

    A module with several names gets one replacement per name; a module called several times gets
    one, and calls of one kind in a forward method share one. timm's normalization layers with an
    activation become a sequence of both.
    """
    if is_activation(network):
        raise NetworkError("the network is an activation layer itself")
    choice = choice or Choice({"": nn.Identity})
    sites = [Site(site.name, site.kinds, site.reason, site) for site in layers_of(network)]
    outputs, again = None, None
    if inputs is None:
        sites += _scanned(network, sites)
    else:
        calls, again, outputs = _tried(network, sites, choice, inputs)
        sites += calls
    choice.check(network, sites)
    left = {site: reason for site in sites if (reason := choice.why_left(site))}
    chosen = [site for site in sites if site not in left]
    if not chosen:
        raise NetworkError(_nothing(network, left, inputs))
    fresh = {site: _fresh(maker(site), site) for site in chosen}
    if len({id(module) for module in fresh.values()}) < len(fresh):
        raise NetworkError(
            "expected a fresh module for each place, got the same module twice; give a function "
            "that makes a new one in each call"
        )
    names = _put(network, fresh, left, again)
    replaced = tuple(Place(names[site], site.kind) for site in chosen)
    return Replaced(replaced, tuple(Place(o.name, o.kind, why) for o, why in left.items())), outputs


def _nothing(network: nn.Module, left: Mapping[Site, str], inputs: Any) -> str:
    modules = sum(1 for _ in network.modules())
    text = f"nothing to replace in {type(network).__name__}: looked for {LOOKED_FOR}, in "
    text += f"{modules} {'modules' if modules > 1 else 'module'}"
    if left:
        examples = [f"{site.kind} at {site.name or '(root)'} ({why})" for site, why in left.items()]
        text += f"; left {', '.join(examples[:3])}{' and others' if len(examples) > 3 else ''}"
    if inputs is None:
        text += "; with inputs=..., bo-act also finds calls that are chosen at run time"
    return text


def _fresh(maker: Callable[[], nn.Module], site: Site) -> nn.Module:
    module = maker()
    if not isinstance(module, nn.Module):
        raise NetworkError(
            f"expected a function that makes modules, got one that made {type(module).__name__}"
        )
    made: Any = module
    made.stands_for = site.kinds
    return module


# --- finding calls --------------------------------------------------------------------------


_OF_A_LOSS = "perhaps of a loss; with inputs=..., the function that forward calls is replaced"


def _call(network: nn.Module, name: str, call: str, *, is_seen: bool) -> Site:
    reason = BETWEEN_0_AND_1 if call in GATES.values() else ""
    if not is_seen and plain(call) == "logsigmoid":
        reason = _OF_A_LOSS
    if not reason and "forward" in vars(network.get_submodule(name)):
        reason = "called by a forward that is set on the module instead of its class"
    return Site(name, (call,), reason)


def _is_new(network: nn.Module, name: str, call: str, layers: list[Site]) -> bool:
    """Tell whether a call belongs to no layer, and was not replaced before."""
    for site in layers:
        layer = site.layer
        if layer is None:
            continue
        is_function = layer.key == "activation" and not layer.kinds[1:]  # of a TransformerLayer
        if name == layer.parent if is_function else _is_in(name, site.name):
            return False
    module: Any = network.get_submodule(name)
    return not (is_redirecting(module) and plain(call) in module.activation_of_calls)


def _is_in(name: str, outer: str) -> bool:
    return name == outer or name.startswith(f"{outer}.")


def _scanned(network: nn.Module, layers: list[Site]) -> list[Site]:
    calls = [
        (name, call)
        for name, module in network.named_modules()
        if not isinstance(module, torch.jit.ScriptModule)
        for call in calls_in(module)
    ]
    return _by_kind(network, calls, layers, is_seen=False)


def _by_kind(
    network: nn.Module, calls: list[tuple[str, str]], layers: list[Site], *, is_seen: bool
) -> list[Site]:
    """Return one item for all calls of a kind in a module: ``x.relu()`` and ``torch.relu(x)``."""
    sites: dict[tuple[str, str], Site] = {}
    for name, call in calls:
        if _is_new(network, name, call, layers):
            sites.setdefault((name, plain(call)), _call(network, name, call, is_seen=is_seen))
    return list(sites.values())


def _tried(
    network: nn.Module, layers: list[Site], choice: Choice, inputs: Any
) -> tuple[list[Site], set[str], Any]:
    """Run a copy in training mode, in which some networks return or call more."""
    trial = copy.deepcopy(network).train()
    for site in layers:
        if site.layer and site.layer.in_place and not site.layer.inside_norm:
            if not choice.why_left(site):
                setattr(trial.get_submodule(site.layer.parent), site.layer.key, StandIn(site.name))
        elif site.layer and site.layer.in_place and not choice.why_left(site):
            trial.get_submodule(site.name.rpartition(".")[0]).act = StandIn(site.name)

    def will_be(name: str, call: str) -> bool:
        if not _is_new(network, name, call, layers):
            return False
        return not choice.why_left(_call(network, name, call, is_seen=True))

    devices = range(torch.cuda.device_count()) if torch.cuda.is_available() else ()
    with torch.random.fork_rng(devices), torch.no_grad(), watched(trial, will_be) as watch:
        if isinstance(inputs, Mapping):
            outputs = trial(**inputs)
        else:
            outputs = trial(*inputs) if isinstance(inputs, tuple) else trial(inputs)
    watch.reads.look(outputs)
    calls = _by_kind(network, sorted(watch.calls), layers, is_seen=True)
    return calls, watch.reads.again, outputs


# --- putting modules in place ---------------------------------------------------------------


def _put(
    network: nn.Module,
    fresh: Mapping[Site, nn.Module],
    left: Mapping[Site, str],
    again: set[str] | None,
) -> dict[Site, str]:
    """Put fresh modules in their places; return their names.

    ``again`` has the places whose changed input is read again; None if unknown.
    """
    calls = {site: module for site, module in fresh.items() if site.layer is None}
    redirects = bool(calls) or any(map(is_redirecting, network.modules()))
    weight = next(network.parameters(), None)
    training = network.training
    names = {}
    for site, module in fresh.items():
        module.train(training)
        if weight is not None:
            module.to(weight.device, weight.dtype if weight.is_floating_point() else None)
        stores = again is None or site.name in again
        if site.layer is None:
            kind = plain(site.kind)
            redirect(network.get_submodule(site.name), {kind: Apart(module)}, stores=stores)
            names[site] = f"{site.name}.activation_of_calls.{kind}.activation".lstrip(".")
        else:
            names[site] = _put_layer(network, site.layer, module, redirects, stores)
    if redirects:
        for site in left:
            _shield(network, site)
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
        # Else torch computes the layer in site kernel, with its own ReLU or GELU.
        parent.activation_relu_or_gelu = 0
    return name + inner


def _shield(network: nn.Module, site: Site) -> None:
    """Let unreplaced modules make their own calls, although an outer module redirects them."""
    if site.layer is None:
        redirect(network.get_submodule(site.name), {}, stores=False)
        return
    parent = network.get_submodule(site.layer.parent)
    module = getattr(parent, site.layer.key)
    if isinstance(parent, Apart) or isinstance(module, torch.jit.ScriptModule):
        return
    if not isinstance(module, nn.Module):
        redirect(parent, {}, stores=False)
    elif site.layer.inside_norm:
        redirect(module.act, {}, stores=False)  # type: ignore[arg-type]
    elif isinstance(module, Activation):
        setattr(parent, site.layer.key, Apart(module))
    else:
        redirect(module, {}, stores=False)
