"""Computing the feature table of a catalogue for one network and one batch of data."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from bo_act.activations.catalogue import Catalogue
from bo_act.activations.space import Space
from bo_act.errors import FeatureError
from bo_act.features.fim import fim_spectra
from bo_act.features.outputs import output_blocks
from bo_act.features.store import SHARD, FeatureStore, Shard
from bo_act.features.table import Block, FeatureTable
from bo_act.specs import FeaturesSpec

ALGORITHM = 1
"""Raised whenever the numbers change for the same inputs, so that old caches are left aside."""

MakeNetwork = Callable[[Callable[[], nn.Module]], nn.Module]
Progress = Callable[[int, int], None]


def compute_features(
    space: Space | Catalogue,
    *,
    network: MakeNetwork | None = None,
    images: Tensor | None = None,
    labels: Tensor | None = None,
    spec: FeaturesSpec | None = None,
    device: str | torch.device = "cpu",
    key: dict[str, Any] | None = None,
    cache: Path | None = None,
    progress: Progress | None = None,
) -> FeatureTable:
    """Compute the features of every function of a space.

    Args:
        space: the space, or its catalogue of N functions.
        network: called with ``activation``, returns the untrained network in which every
            ``activation()`` is a fresh module; None leaves the Fisher spectra out. torch's seed
            is ``spec.seed`` whenever it is called, so that all networks start alike.
        images: (B, C, H, W) one batch of training images for the Fisher matrix.
        labels: (B,) their classes.
        spec: options.
        device: where the networks run.
        key: what identifies the network; where given, spectra are kept on disk and a second call
            reads them.
        cache: folder of what is kept; default: the cache folder.
        progress: called with (functions done, functions in all), first with what was kept.

    Raises:
        FeatureError: the network has no layer that the Fisher spectra cover, or ``network`` was
            given without a batch.
    """
    catalogue = space.catalogue if isinstance(space, Space) else space
    spec = spec or FeaturesSpec()
    blocks = output_blocks(catalogue)
    provenance: dict[str, Any] = {"algorithm": ALGORITHM, "catalogue": catalogue.hash}
    if network is not None and spec.fim:
        if images is None or labels is None:
            raise FeatureError(
                "Fisher spectra need a batch: give images (B, C, H, W) and labels (B,) beside "
                "the network, or leave the network out for output features alone"
            )
        provenance |= spec.model_dump() | {"key": key}
        store = None if key is None else FeatureStore(provenance, root=cache)
        worker = _Spectra(
            catalogue,
            blocks["outputs"],
            network=network,
            images=images,
            labels=labels,
            spec=spec,
            device=device,
        )
        blocks |= worker.blocks(store, progress)
    return FeatureTable(catalogue.hash, blocks, provenance)


class _Spectra:
    """Fisher spectra of all functions of a catalogue, shard by shard."""

    def __init__(
        self,
        catalogue: Catalogue,
        outputs: Block,
        *,
        network: MakeNetwork,
        images: Tensor,
        labels: Tensor,
        spec: FeaturesSpec,
        device: str | torch.device,
    ) -> None:
        self.catalogue = catalogue
        self.outputs = outputs
        self.network = network
        self.spec = spec
        self.device = torch.device(device)
        self.dtype = torch.float64 if spec.precision == "float64" else torch.float32
        self.images = images.to(self.device, self.dtype)
        self.labels = labels.to(self.device)

    def blocks(self, store: FeatureStore | None, progress: Progress | None) -> dict[str, Block]:
        total = len(self.catalogue)
        # An ordinary network first: one in which nothing is covered is an error, not 2,826 rows
        # without a feature. It also tells the number of layers.
        layers = len(self._spectrum(nn.Tanh()).layers)
        pieces = [range(start, min(start + SHARD, total)) for start in range(0, total, SHARD)]
        kept = [store.read(n, len(rows)) if store else None for n, rows in enumerate(pieces)]
        done = sum(len(rows) for rows, shard in zip(pieces, kept, strict=True) if shard)
        if progress:
            progress(done, total)
        shards = []
        for number, rows in enumerate(pieces):
            shard = kept[number]
            if shard is None:
                shard = self._shard(rows, layers)
                if store:
                    store.write(number, shard)
                done += len(rows)
                if progress:
                    progress(done, total)
            shards.append(shard)
        reasons = tuple(reason for shard in shards for reason in shard.reasons)
        return {
            "fim": Block(np.concatenate([s.quantiles for s in shards]), reasons),
            "fim_null": Block(np.concatenate([s.null_mass for s in shards]), reasons),
        }

    def _shard(self, rows: range, layers: int) -> Shard:
        width = layers * self.spec.quantiles
        quantiles = np.full((len(rows), width), np.nan, dtype=np.float32)
        null_mass = np.full((len(rows), layers), np.nan, dtype=np.float32)
        reasons = []
        for place, index in enumerate(rows):
            reason = self.outputs.reasons[index] and "output features are missing"
            if not reason:
                try:
                    spectrum = self._spectrum(self.catalogue.activation(index))
                except FeatureError as error:
                    reason = str(error)
                else:
                    quantiles[place] = spectrum.quantiles.reshape(-1)
                    null_mass[place] = spectrum.null_mass
            reasons.append(reason)
        return Shard(quantiles, null_mass, reasons)

    def _spectrum(self, activation: nn.Module) -> Any:
        with torch.random.fork_rng():
            torch.manual_seed(self.spec.seed)
            network = self.network(lambda: activation).to(self.device, self.dtype)
        return fim_spectra(
            network,
            self.images,
            self.labels,
            fisher=self.spec.fisher,
            quantiles=self.spec.quantiles,
            seed=self.spec.seed,
        )
