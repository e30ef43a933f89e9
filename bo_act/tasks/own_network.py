"""Your own network and batch for Fisher spectra (``features.of``)."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from bo_act.activations.module import Activation
from bo_act.dependencies.torch_state import plain_torch
from bo_act.errors import NetworkError, SpecError
from bo_act.fisher.calls import Inputs, Targets
from bo_act.io import digest
from bo_act.networks import Activations, materialize
from bo_act.specs import StudySpec
from bo_act.tasks.configuration import REFERENCE, places
from bo_act.training.devices import rng_devices
from bo_act.user_code.files import UserFile, call_with, load_file, load_function

_RETURNED = "(network, inputs) or (network, inputs, targets)"
EXPECTED = f"def network_and_batch(activation, *, seed) that returns {_RETURNED}"

KEY = "features.of"


@dataclass(frozen=True)
class OwnNetwork:
    """A function of your file that returns an untrained network and a batch; can be pickled.

    Attributes:
        file: with its content, so that all processes run the same code.
        function: its name there.
        seed: of the initial weights and of a random batch.
        places: names of the study's activations; none where it has one.
    """

    file: UserFile
    function: str
    seed: int
    places: tuple[str, ...]

    @classmethod
    def load(cls, spec: StudySpec) -> OwnNetwork | None:
        """Read ``"my_train.py:network_and_batch"``; None where the study names none.

        Raises:
            SpecError: there is no such file or function, or it cannot be imported.
        """
        of = spec.features.of
        if of is None:
            return None
        file, _ = load_function(of, key=KEY, expected=EXPECTED, error=SpecError)
        return cls(file, of.rpartition(":")[2], spec.features.seed, places(spec))

    @property
    def path(self) -> Path:
        """The file."""
        return self.file.path

    @property
    def source_hash(self) -> str:
        """sha256 of the file's content, see ``UserFile``."""
        return digest(self.file.content)

    def __call__(self, activation: Activation) -> nn.Module:
        """Build the untrained network; torch's seed has been set."""
        network: nn.Module = self._made(activation)[0]
        return network

    def batch(self) -> tuple[Inputs, Targets | None, dict[str, Any]]:
        """Return inputs, targets (if any), and everything that determines the network.

        That includes a hash of the initial weights, since a network may depend on more than the
        file: on a configuration it reads, or on the version of a library.
        """
        device = torch.device("cpu")
        with plain_torch(), torch.random.fork_rng(rng_devices(device)):
            torch.manual_seed(self.seed)
            network, *batch = self._made(Activation(REFERENCE))
            where = f"{KEY}: {self.path}: {self.function}"
            materialize(network, where, inputs=batch[0], seed=self.seed)
        weights = hashlib.sha256()
        for name, state in network.state_dict().items():
            weights.update(f"{name} ".encode())
            weights.update(self._bytes_of(state))
        key = {"source": self.source_hash, "of": self.function, "weights": weights.hexdigest()}
        return batch[0], batch[1] if len(batch) > 1 else None, key

    @staticmethod
    def _bytes_of(state: Any) -> bytes:
        """Return what tells one entry of a ``state_dict`` from another."""
        if not isinstance(state, Tensor) or state.layout != torch.strided or state.is_quantized:
            return repr(state).encode()
        values = state.detach().cpu().contiguous().flatten()
        described = f"{state.dtype} {tuple(state.shape)} ".encode()
        return described + values.view(torch.uint8).numpy().tobytes()

    def _made(self, activation: Activation) -> tuple[Any, ...]:
        module = load_file(self.file, key=KEY, error=SpecError)
        function: Callable[..., Any] = getattr(module, self.function)
        given: Activations = activation
        if self.places != ("",):
            given = dict.fromkeys(self.places, activation)
        offered: Mapping[str, Any] = {"activation": given, "seed": self.seed}
        what = f"{KEY}: {self.path}: {self.function}"
        made: tuple[Any, ...] = call_with(function, offered, what=what, error=NetworkError)
        fits = isinstance(made, tuple) and len(made) in (2, 3) and isinstance(made[0], nn.Module)
        if not fits:
            parts = made if isinstance(made, tuple) else (made,)
            came = ", ".join(type(part).__name__ for part in parts)
            raise NetworkError(
                f"{what}: expected it to return {_RETURNED}, the network as a torch.nn.Module, got "
                f"{f'({came})' if isinstance(made, tuple) else came}"
            )
        return made
