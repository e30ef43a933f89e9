"""Loading networks: PyTorch files that define ``build``.

The contract of a model file::

    def build(activation, *, <facts>, <options>) -> nn.Module

Facts describe the data; the signature asks for them by name: ``in_channels``, ``image_size`` and
``num_classes`` of images, ``in_features`` and ``out_features`` of tables, ``vocabulary`` and
``context`` of tokens (all: ``bo_act.data.data.Data``).
``activation()`` returns a fresh module; ``build`` calls it once for each place of the searched
function. ``activation`` is a module, too; used directly, a fresh one replaces it. A network may
name its places, ``activation("early")``: a study with the same names searches a function for each,
other studies use one function everywhere. Options are further keyword arguments with defaults.
Library networks are named ``torchvision:NAME``, ``timm:NAME`` and ``transformers:NAME`` and take
the library's own options.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from bo_act import content
from bo_act.data.data import FACTS
from bo_act.dependencies.torch_internals import children_of, set_child
from bo_act.dependencies.torch_state import plain_torch
from bo_act.errors import BoActError, NetworkError, nearest
from bo_act.io import digest
from bo_act.networks import libraries
from bo_act.specs import ModelSpec
from bo_act.specs.base import checked_seed
from bo_act.user_code.failures import USERS, is_machines, one_line
from bo_act.user_code.files import UserFile, is_required, load_file, read_file, takes_any

CONTRACT = ("in_channels", "image_size", "num_classes")
EXPECTED = "build(activation, *, <facts of the data>, <options>)"


Activations = Callable[[], nn.Module] | Mapping[str, Callable[[], nn.Module]]
"""What returns a fresh module of the activation function, or several of them by name."""


class _Places(nn.Module):
    """The ``activation`` of ``build``: records the requested places.

    A network may also use it as a module; ``fill`` then replaces it by fresh ones.
    """

    def __init__(self, path: Path, activation: Activations) -> None:
        super().__init__()
        self.path = path
        self.given = (activation,)  # a tuple hides it from torch
        self.asked: set[str] = set()

    @property
    def activation(self) -> Activations:
        return self.given[0]

    def __call__(self, name: Any = "", *, inplace: bool = False) -> Any:
        del inplace  # as for nn.ReLU
        return self.fresh(name) if isinstance(name, str) else super().__call__(name)

    def forward(self, x: torch.Tensor) -> Any:
        return self.fresh()(x)

    def fill(self, network: nn.Module) -> None:
        for parent in list(network.modules()):
            for name, child in list(children_of(parent).items()):
                if isinstance(child, _Places):
                    set_child(parent, name, self.fresh())

    def fresh(self, name: str = "") -> nn.Module:
        self.asked.add(name)
        if not isinstance(self.activation, Mapping):
            return self.activation()
        if name not in self.activation:
            known = ", ".join(self.activation)
            asks = f"activation({name!r})" if name else "activation() without a name"
            raise NetworkError(
                f"{self.path}: build calls {asks}, and the study's activations are {known}"
                f"{nearest(name, self.activation)}; use the same names in both"
            )
        return self.activation[name]()

    def check(self) -> None:
        """Refuse a network without a place for a function."""
        if not self.asked:
            raise NetworkError(
                f"{self.path}: build never called activation(), so the activation function would "
                "not change this network; call it once for each activation layer"
            )
        if isinstance(self.activation, Mapping):
            for name in self.activation:
                if name not in self.asked:
                    raise NetworkError(
                        f"{self.path}: build never called activation({name!r}), one of the "
                        "study's activations; it calls "
                        f"{', '.join(sorted(self.asked))}"
                    )


@dataclass(frozen=True)
class NetworkBuilder:
    """A network that can be built with any activation function.

    Attributes:
        name: name or path from the study.
        source_hash: sha256 (hexadecimal) of the file's content, or a library's name and version,
            and the options.
        options: keyword arguments for ``build`` besides facts of the data.
        build: the file's function.
        file: the model file with its content, pickled with the builder, so that other processes
            build from the hashed content even if the file changes. For a library network, its name
            instead of the path, the version instead of the content.
    """

    name: str
    source_hash: str
    options: Mapping[str, Any] = field(hash=False)
    build: Callable[..., nn.Module] = field(repr=False, compare=False)
    file: UserFile = field(repr=False, compare=False)

    @property
    def path(self) -> Path:
        """The model file; the name itself for a network of a library."""
        return self.file.path

    def __reduce__(self) -> tuple[Any, ...]:
        return _builder, (self.name, self.file, dict(self.options))

    def __call__(
        self,
        activation: Activations,
        *,
        seed: int,
        **facts: Any,
    ) -> nn.Module:
        """Build the network; its initial weights depend only on ``seed``.

        torch's global random state is left as it was.

        Args:
            activation: returns a fresh module of the activation function; several by name for a
                network that names its places.
            seed: of the initial weights.
            facts: of the data, by name (``in_channels=1, image_size=8, num_classes=10``), see
                ``Data``; ``build`` gets those in its signature.

        Returns:
            The network, from inputs (b, ...) to logits or numbers.

        Raises:
            NetworkError: ``build`` asks for an unknown fact, fails, returns something else, or
                does not use ``activation`` or all of its names.
        """
        seed = checked_seed(seed, error=NetworkError)
        asked = self.asked(facts)
        places = _Places(self.path, activation)
        devices = range(torch.cuda.device_count()) if torch.cuda.is_available() else ()
        with plain_torch(), torch.random.fork_rng(devices):
            torch.manual_seed(seed)
            try:
                network = self.build(places, **asked, **self.options)
            except BoActError:
                raise
            except USERS as error:
                if is_machines(error):  # out of memory is not the file's fault
                    raise
                raise NetworkError(
                    f"{self.path}: build failed for {_in_words(asked)}: {one_line(error)}"
                ) from error
        if not isinstance(network, nn.Module):
            raise NetworkError(
                f"{self.path}: expected build to return a torch.nn.Module, "
                f"got {type(network).__name__}"
            )
        places.fill(network)
        places.check()
        return network

    def asked(self, facts: Mapping[str, Any]) -> dict[str, Any]:
        """Return the facts of the data that ``build`` requests.

        Raises:
            NetworkError: a requested fact is missing, or a given one unknown.
        """
        for name in facts:
            if name not in FACTS:
                raise NetworkError(
                    f"expected facts {', '.join(FACTS)}, got {name!r}{nearest(name, FACTS)}"
                )
        of_images = "in_channels" in facts
        asked = {}
        parameters = list(inspect.signature(self.build).parameters.values())[1:]
        for parameter in parameters:
            several = parameter.kind in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL)
            if several or parameter.name in self.options:
                continue
            needed = is_required(parameter)
            # For images, options may have the names of other facts.
            if parameter.name in facts and (needed or not of_images or parameter.name in CONTRACT):
                asked[parameter.name] = facts[parameter.name]
            elif needed:
                known = ", ".join(f"{name} = {value}" for name, value in facts.items())
                raise NetworkError(
                    f"{self.path}: build asks for {parameter.name!r}, which this data set does not "
                    f"have; its facts are {known}{_of_images(parameter.name)}"
                )
        if not asked and takes_any(parameters):
            asked = {k: v for k, v in facts.items() if not of_images or k in CONTRACT}
        return {name: value for name, value in asked.items() if name not in self.options}

    def with_options(self, options: Mapping[str, Any]) -> NetworkBuilder:
        """Return a builder with other options, from the same source.

        Raises:
            NetworkError: an option is unknown.
        """
        return _builder(self.name, self.file, dict(options))


def load_network(spec: ModelSpec) -> NetworkBuilder:
    """Load a model file by name or path.

    Raises:
        ContentNotFoundError: no such file.
        NetworkError: the library has no such network, the file cannot be imported or breaks the
            contract, or an option is unknown.
    """
    if libraries.split_name(spec.name):
        file = UserFile(Path(spec.name), libraries.source_of(spec.name))
    else:
        file = read_file(content.find("models", spec.name), key="model", error=NetworkError)
    return _builder(spec.name, file, dict(spec.options))


def _builder(name: str, file: UserFile, options: dict[str, Any]) -> NetworkBuilder:
    canonical = json.dumps(options, sort_keys=True, separators=(",", ":"), default=str)
    build: Callable[..., nn.Module]
    if libraries.split_name(name):
        libraries.check_options(name, options)
        build = libraries.build_function(name)
    else:
        build = _build_of_file(file, options)
    return NetworkBuilder(
        name=name,
        source_hash=digest(file.content + b"\0" + canonical.encode()),
        options=options,
        build=build,
        file=file,
    )


def _build_of_file(file: UserFile, options: Mapping[str, Any]) -> Callable[..., nn.Module]:
    module = load_file(file, key="model", error=NetworkError, expected=EXPECTED)
    build: Callable[..., nn.Module] | None = getattr(module, "build", None)
    if not callable(build):
        came = "no such name" if build is None else f"{type(build).__name__} {build!r:.40}"
        raise NetworkError(
            f"{file.path}: expected a function {EXPECTED}, got {came}; define it in this file"
        )
    _check_signature(file.path, build, options)
    return build


def _check_signature(path: Path, build: Callable[..., Any], options: Mapping[str, Any]) -> None:
    try:
        signature = inspect.signature(build)
    except (TypeError, ValueError) as error:
        raise NetworkError(
            f"{path}: expected {EXPECTED}, got a build without readable arguments"
        ) from error
    parameters = list(signature.parameters.values())
    by_name = (inspect.Parameter.KEYWORD_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    named = [p for p in parameters[1:] if p.kind in by_name]
    facts = [p.name for p in named if p.name in FACTS]
    contract = dict.fromkeys(facts)
    try:
        signature.bind_partial(None, **contract)
    except TypeError as error:
        raise NetworkError(
            f"{path}: expected {EXPECTED}, got build{_shown(signature)}: {error}; "
            f"change its arguments"
        ) from error

    known = [p.name for p in named if p.name not in CONTRACT]
    every = takes_any(parameters)
    fixed = {parameters[0].name, *CONTRACT}
    for option in options:
        if option in fixed or (option not in known and not every):
            own = [name for name in known if name not in FACTS]
            hint = nearest(option, known) or f"; known options: {', '.join(own) or 'none'}"
            raise NetworkError(f"{path}: unknown option {option!r}{hint}")
    try:
        signature.bind(None, **contract | dict(options))
    except TypeError as error:
        needed = [p.name for p in named if is_required(p) and p.name not in {*facts, *options}]
        hint = "".join(nearest(name, FACTS) for name in needed[:1])
        raise NetworkError(
            f"{path}: build{_shown(signature)} cannot be called: {error}{hint}; facts of data are "
            f"{', '.join(FACTS)}; give anything else a default value in the file or set it among "
            "the model's options"
        ) from error


def _of_images(name: str) -> str:
    """Say when a missing fact would exist."""
    if name in ("in_channels", "image_size"):
        return "; images are square, of shape (n, channels, height, width)"
    if name == "num_classes":
        return "; classes are whole numbers of shape (n,)"
    return ""


def _in_words(facts: Mapping[str, Any]) -> str:
    """Return facts as text."""
    if facts.keys() == set(CONTRACT):
        side = facts["image_size"]
        return (
            f"{facts['in_channels']} channels, images of {side} x {side} and "
            f"{facts['num_classes']} classes"
        )
    return ", ".join(f"{name} = {value}" for name, value in facts.items()) or "no facts of the data"


def _shown(signature: inspect.Signature) -> str:
    plain = [
        parameter.replace(default=parameter.empty, annotation=parameter.empty)
        for parameter in signature.parameters.values()
    ]
    return str(inspect.Signature(plain))
