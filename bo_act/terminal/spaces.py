"""Descriptions of search spaces on stdout."""

from __future__ import annotations

from typing import TYPE_CHECKING

from bo_act.terminal.console import key_values

if TYPE_CHECKING:
    from bo_act.spaces.catalogue import Catalogue
    from bo_act.spaces.enumeration import Enumeration
    from bo_act.spaces.smoothness import Count


def listed_space(catalogue: Catalogue, counted: Count) -> None:
    """Print a space with its number of functions."""
    space = catalogue.space
    domain = space.spec.domain
    finite = {f"finite on [{domain.low:g}, {domain.high:g}]": f"{int(catalogue.finite.sum()):,}"}
    _space(space, f"{len(catalogue):,}", finite | _satisfying(counted), catalogue.hash[:16])


def large_space(space: Enumeration, counted: Count) -> None:
    """Print a space that is too large to list."""
    _space(space, "not counted: too large to list, searched locally", _satisfying(counted))


def _space(space: Enumeration, distinct: str, counts: dict[str, str], identity: str = "") -> None:
    spec = space.spec
    parameters = (f"{slot} ({len(d.choices)})" for slot, d in space.distributions.items())
    rows = {"expressions": f"{len(space):,}", "distinct functions": distinct, **counts}
    if spec.require:
        rows["required"] = ", ".join(spec.require)
    rows |= {
        "schemas": ", ".join(spec.schemas) or "none",
        "parameters": ", ".join(parameters),
        "baselines": ", ".join(map(str, space.baselines)),
    }
    if identity:
        rows["hash"] = identity
    key_values(f"Space {space.name}: {spec.description}", rows)


def _satisfying(counted: Count) -> dict[str, str]:
    """Return how many functions satisfy each possible requirement of a space."""
    said = {}
    for name, number in counted.satisfying.items():
        share = f"{100 * number / counted.of:.0f}% of {counted.of:,} drawn at random"
        said[name.replace("_", " ")] = share if counted.drawn else f"{number:,}"
    return said
