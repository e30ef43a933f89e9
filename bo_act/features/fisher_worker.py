"""Fisher jobs: computing the spectra of some functions in any process on any machine.

A job holds everything that the spectra depend on besides the functions; any process can unpickle
it and open it on its own device. A piece is a batch of functions of a catalogue, as texts, and its
result is a shard. A function's numbers depend only on the job and the function (and, in their last
digits, on the kind of device and the number of CPU threads), never on its batch.
"""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from bo_act.activations.module import Activation
from bo_act.dependencies.torch_state import plain_torch
from bo_act.errors import FeatureError
from bo_act.features.act_bench import act_bench_vector
from bo_act.features.store import Shard
from bo_act.fisher.cache import InputFactorCache
from bo_act.fisher.calls import Inputs, as_tensor, mapped, parts
from bo_act.fisher.options import FisherOptions
from bo_act.fisher.spectra import FimSpectra, network_spectra
from bo_act.networks.lazy import materialize
from bo_act.spaces.catalogue import Catalogue
from bo_act.specs import FeaturesSpec

IN_FLIGHT = 3
"""Functions at a time on a GPU: one computes while others wait for eigenvalues or the CPU."""

T = TypeVar("T", nn.Module, Tensor)
MakeNetwork = Callable[[Activation], nn.Module]


@dataclass(frozen=True, eq=False)
class FunctionBatch:
    """A batch of functions of a catalogue.

    Attributes:
        indices: (n,) int64, ascending.
        texts: their n expressions.
    """

    indices: NDArray[np.int64]
    texts: tuple[str, ...]

    @classmethod
    def of(cls, catalogue: Catalogue, indices: NDArray[np.int64]) -> FunctionBatch:
        """Return these functions of a catalogue."""
        return cls(indices, tuple(catalogue.text(int(index)) for index in indices))

    def __str__(self) -> str:
        shown = ", ".join(self.texts[:3])
        more = len(self.texts) - 3
        return shown + (f" and {more} more" if more > 0 else "")


@dataclass(frozen=True, eq=False)
class FisherJob:
    """Everything that spectra depend on besides the functions.

    Attributes:
        network: called with ``activation``, returns the untrained network.
        inputs: one batch, on the CPU, see ``fim_spectra``.
        targets: on the CPU; None if unused.
        spec: options.
    """

    network: MakeNetwork
    inputs: Inputs
    targets: Tensor | None
    spec: FeaturesSpec

    def __call__(self, device: torch.device) -> Callable[[FunctionBatch], Shard]:
        """Open the job on a device, to compute batches of functions."""
        return Spectra(self, device).shard

    def batch_digest(self) -> str:
        """Identify the batch by its numbers, dtype and shape."""
        digest = hashlib.sha256()
        named = [*parts(self.inputs).items()]
        for name, value in named if self.targets is None else [*named, ("", self.targets)]:
            if not isinstance(value, Tensor):
                digest.update(f"{name}{value!r} ".encode())
                continue
            digest.update(f"{name}{value.dtype} {tuple(value.shape)} ".encode())
            digest.update(value.contiguous().flatten().view(torch.uint8).numpy().data)
        return digest.hexdigest()


class Spectra:
    """A job opened on a device.

    Args:
        job: what to compute.
        device: where.
        in_flight: functions at a time, in threads of this process; default: ``IN_FLIGHT`` on a
            GPU, which waits for the CPU otherwise, and 1 on a CPU.
    """

    def __init__(
        self, job: FisherJob, device: torch.device, *, in_flight: int | None = None
    ) -> None:
        self.job = job
        self.device = device
        self.in_flight = in_flight or (IN_FLIGHT if device.type == "cuda" else 1)
        self.options = FisherOptions(
            **{field.name: getattr(job.spec, field.name) for field in fields(FisherOptions)}
        )
        self.dtype = torch.float64 if job.spec.precision == "float64" else torch.float32
        self.inputs = mapped(job.inputs, self._placed)
        self.targets = job.targets
        self.shared = InputFactorCache()
        self._building = threading.Lock()

    @cached_property
    def probe(self) -> FimSpectra:
        """The spectra of an ordinary network, for its layers.

        Raises:
            FeatureError: no layer is covered, or two networks of the same seed differ.
        """
        first, second = (self._network(Activation("tanh(x)")) for _ in range(2))
        again = second.state_dict()
        for name, values in first.state_dict().items():
            # Modules may have a state of their own, which is no tensor.
            if isinstance(values, Tensor) and not torch.equal(values, again[name]):
                raise FeatureError(
                    f"two networks built after the same torch.manual_seed differ (in {name!r}), so "
                    "spectra would differ by more than the activation function: initial weights "
                    "must come from torch's global generator, not from the network's own "
                    "generator or numpy"
                )
        return self._spectra(second)

    def shard(self, piece: FunctionBatch) -> Shard:
        """Compute the spectra of some functions, or the reasons why they are missing."""
        started = time.perf_counter()
        layers = len(self.probe.layers)
        rows = len(piece.texts)
        quantiles = np.full((rows, layers * self.job.spec.quantiles), np.nan, dtype=np.float32)
        null_mass = np.full((rows, layers), np.nan, dtype=np.float32)
        reasons = [""] * rows
        for position, spectra in enumerate(self._each(piece.texts)):
            if isinstance(spectra, FeatureError):
                reasons[position] = str(spectra)
            else:
                quantiles[position] = spectra.quantiles.reshape(-1)
                null_mass[position] = spectra.null_mass
        cuda = self.device.type == "cuda"
        return Shard(
            indices=piece.indices,
            quantiles=quantiles,
            null_mass=null_mass,
            reasons=tuple(reasons),
            device=torch.cuda.get_device_name(self.device) if cuda else self.device.type,
            seconds=time.perf_counter() - started,
        )

    def act_bench_vector(self, text: str) -> NDArray[np.float64] | None:
        """Return a function's vector in the Act-Bench format, None if it has no factors."""
        if self.targets is None:
            raise FeatureError("vectors in the Act-Bench format need targets, the true classes")
        try:
            return act_bench_vector(self._network(Activation(text)), self.inputs, self.targets)
        except FeatureError:
            return None

    def _each(self, texts: Sequence[str]) -> Iterator[FimSpectra | FeatureError]:
        """Yield the spectra of each function in turn, or the reason why they are missing."""

        def spectra_of(text: str) -> FimSpectra | FeatureError:
            stream = torch.cuda.Stream(self.device) if self.device.type == "cuda" else None
            with torch.cuda.stream(stream):  # no effect without one
                try:
                    return self._spectra(self._network(Activation(text)))
                except FeatureError as error:
                    return error

        if self.in_flight == 1:
            yield from map(spectra_of, texts)
            return
        with ThreadPoolExecutor(self.in_flight) as pool:
            yield from pool.map(spectra_of, texts)

    def _placed(self, values: Tensor | NDArray[Any]) -> Tensor:
        """Move inputs to the device; only floating-point numbers get the dtype."""
        tensor = as_tensor(values)
        dtype = self.dtype if tensor.is_floating_point() else None
        return channels_last(tensor.to(self.device, dtype))

    def _network(self, activation: Activation) -> nn.Module:
        """Build the network with its initial weights, on the device."""
        with self._building, plain_torch(), torch.random.fork_rng(cuda_devices()):
            torch.manual_seed(self.job.spec.seed)
            network = self.job.network(activation)
            materialize(network, inputs=self.job.inputs, seed=self.job.spec.seed)
        return channels_last(network.to(self.device, self.dtype))

    def _spectra(self, network: nn.Module) -> FimSpectra:
        return network_spectra(
            network, self.inputs, self.targets, options=self.options, shared=self.shared
        )


def channels_last(content: T) -> T:
    """Put images and convolutions in the faster memory order.

    All-CNN-C, forward and backward on two CPU cores: 0.85 s instead of 1.03 s; the correlations of
    its input factors need this order too.
    """
    tensors = [content] if isinstance(content, Tensor) else [*content.parameters()]
    # Convolutions of three axes have their own such order, which torch does not choose by itself.
    if any(tensor.dim() == 5 for tensor in tensors) or not any(t.dim() == 4 for t in tensors):
        return content
    return content.to(memory_format=torch.channels_last)


def cuda_devices() -> range:
    """Return the numbers of torch's CUDA devices."""
    return range(torch.cuda.device_count() if torch.cuda.is_available() else 0)
