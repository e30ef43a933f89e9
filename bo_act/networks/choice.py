"""What a caller chooses to replace in a network, and the errors for what is not there."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from bo_act.errors import NetworkError, nearest
from bo_act.networks.calls import (
    FUNCTIONS,
    GATES,
    plain,
)
from bo_act.networks.layers import (
    LEFT,
    Layer,
    full_name,
)

LOOKED_FOR = (
    "activation modules of torch, timm and transformers, elementwise modules without parameters, "
    "and calls such as functional.relu(x) or x.tanh()"
)

Selected = str | type[nn.Module] | Iterable[str | type[nn.Module]]
"""Names of modules, kinds of activation functions, or both."""


def selected(given: Any, what: str) -> tuple[str | type, ...] | None:
    """Return an argument ``only`` or ``except_`` as a tuple of names and kinds.

    Raises:
        NetworkError: an entry is neither a name nor a class of modules.
    """
    if given is None:
        return None
    entries = (given,) if isinstance(given, str | type) else given
    if not isinstance(entries, Iterable):
        entries = (entries,)
    for entry in (checked := tuple(entries)):
        if not (
            isinstance(entry, str) or (isinstance(entry, type) and issubclass(entry, nn.Module))
        ):
            raise NetworkError(
                f"{what}: expected names of modules, or kinds such as nn.ReLU or 'relu', "
                f"got {entry!r:.60}"
            )
    return checked


@dataclass(frozen=True)
class Site:
    """A replaceable layer or call."""

    name: str
    kinds: tuple[str, ...]
    reason: str
    layer: Layer | None = None

    @property
    def kind(self) -> str:
        """Original class or call."""
        return self.kinds[0]

    def is_within(self, name: str) -> bool:
        """Tell whether it is the module of this name, or inside it."""
        return name in ("", self.name) or self.name.startswith(f"{name}.")

    def is_of(self, kind: str | type) -> bool:
        """Tell whether it has this class, or a class or call of this name."""
        if isinstance(kind, str):
            return plain(self.kind) == plain(kind)
        return full_name(kind) in self.kinds[1:]


class Choice:
    """The caller's choice of replacements."""

    def __init__(
        self,
        makers: Mapping[str, Callable[[], nn.Module]],
        only: tuple[str | type, ...] | None = None,
        except_: tuple[str | type, ...] = (),
    ) -> None:
        self.makers, self.only, self.except_ = makers, only, except_

    def _stage(self, site: Site) -> str | None:
        return max((name for name in self.makers if site.is_within(name)), key=len, default=None)

    def maker(self, site: Site) -> Callable[[], nn.Module]:
        """Return what makes the site's new module."""
        return self.makers[self._stage(site)]  # type: ignore[index]

    def why_left(self, site: Site) -> str:
        """Return why a site stays as it is; empty if it is replaced."""
        if site.reason:
            return site.reason
        if self.only is not None and not any(_is_meant(entry, site) for entry in self.only):
            return "not named in only"
        if any(_is_meant(entry, site) for entry in self.except_):
            return "named in except_"
        return "" if self._stage(site) is not None else "in no stage of the mapping"

    def check(self, network: nn.Module, sites: list[Site]) -> None:
        """Refuse unknown names.

        Raises:
            NetworkError: a name is unknown, or nothing it means can be replaced.
        """
        names = [name for name, _ in network.named_modules() if name]
        kinds = {plain(site.kind) for site in sites}
        for what, entries in (("only", self.only or ()), ("stage", tuple(self.makers))):
            for entry in entries:
                meant = [
                    site
                    for site in sites
                    if (site.is_within(str(entry)) if what == "stage" else _is_meant(entry, site))
                ]
                if any(not site.reason for site in meant):
                    continue
                if entry and meant:
                    raise NetworkError(
                        f"{what} {_shown(entry)}: {meant[0].kind} at {meant[0].name or '(root)'} "
                        f"cannot be replaced: {meant[0].reason}"
                    )
                if entry in names:
                    raise NetworkError(
                        f"{what} {_shown(entry)}: no activation function there; {_contents(sites)}"
                    )
                if entry and isinstance(entry, str):  # a missing class is no mistake
                    raise _unknown(what, entry, names, kinds, sites)
        known = kinds | {plain(name) for name in (*FUNCTIONS.values(), *GATES.values(), *LEFT)}
        for entry in self.except_:
            if isinstance(entry, str) and entry not in names and plain(entry) not in known:
                raise _unknown("except_", entry, names, known, sites)


def _is_meant(entry: str | type, site: Site) -> bool:
    return site.is_of(entry) or (isinstance(entry, str) and site.is_within(entry))


def _shown(entry: str | type) -> str:
    return entry.__name__ if isinstance(entry, type) else repr(entry)


def _contents(sites: list[Site]) -> str:
    kinds = dict.fromkeys(site.kind for site in sites if not site.reason)
    return f"the network has {', '.join(kinds)}" if kinds else f"looked for {LOOKED_FOR}"


def _unknown(
    what: str, entry: str, names: list[str], kinds: set[str], sites: list[Site]
) -> NetworkError:
    hint = nearest(entry, [*names, *kinds])
    return NetworkError(
        f"{what}: {entry!r} is neither a module of the network nor a kind of activation function"
        f"{hint}; {_contents(sites)}"
    )
