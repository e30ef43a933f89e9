"""Computing Fisher spectra of some functions: the work of one process, in pieces that travel.

A job is everything that the spectra depend on besides the functions; it can be pickled, so that
any process on any machine can open it on a device of its own. A piece is some functions of a
catalogue, as texts. What comes back is a shard. A function's numbers depend on the job and the
function alone (and, in their last digits, on the kind of device and the number of CPU threads),
never on the piece that it was computed in.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from bo_act.activations.module import Activation
from bo_act.errors import FeatureError
from bo_act.features.fim import FimSpectra, fim_spectra
from bo_act.features.store import Shard
from bo_act.specs import FeaturesSpec

MakeNetwork = Callable[[Callable[[], nn.Module]], nn.Module]


@dataclass(frozen=True, eq=False)
class Piece:
    """Some functions of a catalogue.

    Attributes:
        indices: (n,) int64, ascending.
        texts: their n expressions.
    """

    indices: NDArray[np.int64]
    texts: tuple[str, ...]

    def __str__(self) -> str:
        shown = ", ".join(self.texts[:3])
        more = len(self.texts) - 3
        return shown + (f" and {more} more" if more > 0 else "")


@dataclass(frozen=True, eq=False)
class SpectraJob:
    """What spectra are computed of and with.

    Attributes:
        network: called with ``activation``, returns the untrained network.
        images: (B, C, H, W) on the CPU.
        labels: (B,) on the CPU.
        spec: options.
    """

    network: MakeNetwork
    images: Tensor
    labels: Tensor
    spec: FeaturesSpec

    def batch_digest(self) -> str:
        """Identify the batch by its very numbers, dtype and shape."""
        digest = hashlib.sha256()
        for tensor in (self.images, self.labels):
            digest.update(f"{tensor.dtype} {tuple(tensor.shape)} ".encode())
            digest.update(tensor.contiguous().view(torch.uint8).numpy().data)
        return digest.hexdigest()


class Spectra:
    """A job opened on a device.

    Args:
        job: what to compute.
        device: where.
    """

    def __init__(self, job: SpectraJob, device: torch.device) -> None:
        self.job = job
        self.device = device
        self.dtype = torch.float64 if job.spec.precision == "float64" else torch.float32
        self.images = job.images.to(device, self.dtype)
        self.labels = job.labels.to(device)

    @cached_property
    def probe(self) -> FimSpectra:
        """The spectra of an ordinary network, which tell its layers.

        Raises:
            FeatureError: no layer is covered.
        """
        return self._spectra(nn.Tanh())

    def shard(self, piece: Piece) -> Shard:
        """Compute the spectra of some functions; those that have none get a reason."""
        started = time.perf_counter()
        layers = len(self.probe.layers)
        rows = len(piece.texts)
        quantiles = np.full((rows, layers * self.job.spec.quantiles), np.nan, dtype=np.float32)
        null_mass = np.full((rows, layers), np.nan, dtype=np.float32)
        reasons = [""] * rows
        for place, text in enumerate(piece.texts):
            try:
                found = self._spectra(Activation(text))
            except FeatureError as error:
                reasons[place] = str(error)
            else:
                quantiles[place] = found.quantiles.reshape(-1)
                null_mass[place] = found.null_mass
        cuda = self.device.type == "cuda"
        return Shard(
            indices=piece.indices,
            quantiles=quantiles,
            null_mass=null_mass,
            reasons=tuple(reasons),
            device=torch.cuda.get_device_name(self.device) if cuda else self.device.type,
            seconds=time.perf_counter() - started,
        )

    def _spectra(self, activation: nn.Module) -> FimSpectra:
        spec = self.job.spec
        devices = range(torch.cuda.device_count()) if torch.cuda.is_available() else ()
        with torch.random.fork_rng(devices):
            torch.manual_seed(spec.seed)
            network = self.job.network(lambda: activation).to(self.device, self.dtype)
        return fim_spectra(
            network,
            self.images,
            self.labels,
            fisher=spec.fisher,
            quantiles=spec.quantiles,
            seed=spec.seed,
        )
