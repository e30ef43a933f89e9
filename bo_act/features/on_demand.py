"""Fisher spectra of functions that a subset left out, when a search asks for them."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from bo_act.activations.catalogue import Catalogue
from bo_act.features.spectra import Piece, Spectra
from bo_act.features.store import FeatureStore, Shard
from bo_act.features.table import Block


@dataclass(frozen=True, eq=False)
class LeftOut:
    """Computes spectra in this process, or reads them where they are kept.

    Attributes:
        count: see ``OnDemand``.
        catalogue: whose indices are asked for.
        spectra: computes.
        store: keeps them; None keeps none.
    """

    count: int
    catalogue: Catalogue
    spectra: Spectra
    store: FeatureStore | None

    def __call__(self, indices: Sequence[int]) -> Mapping[str, Block]:
        """Return the blocks ``fim`` and ``fim_null`` of n functions, in their order."""
        wanted = np.unique(np.array(indices, dtype=np.int64))
        missing = wanted
        if self.store is not None:
            missing = missing_from(self.store, wanted, self.catalogue)
        computed = []
        if len(missing):
            computed.append(self.spectra.shard(Piece.of(self.catalogue, missing)))
        if self.store is not None:
            for shard in computed:
                self.store.keep(shard)
            # What was kept first holds, whichever process kept it.
            computed = [*self.store.shards(wanted), *computed]
        return _rows(computed, indices)


def missing_from(
    store: FeatureStore, wanted: NDArray[np.int64], catalogue: Catalogue
) -> NDArray[np.int64]:
    """Return which of the wanted functions a store lacks; warn where it had them."""
    survey = store.survey(wanted)
    if survey.damaged:
        files = ", ".join(f"{file} ({what})" for file, what in list(survey.damaged.items())[:5])
        more = f" and {len(survey.damaged) - 5} more" if len(survey.damaged) > 5 else ""
        lost = Piece.of(catalogue, survey.lost)
        warnings.warn(
            f"damaged shards in {store.folder}: {files}{more}; the spectra of "
            f"{len(lost.indices)} functions are computed again: {lost}",
            stacklevel=3,
        )
    return survey.missing


def _rows(shards: Sequence[Shard], indices: Sequence[int]) -> Mapping[str, Block]:
    """Return the rows of functions, each from the first shard that has it."""
    found: dict[int, tuple[Shard, int]] = {}
    for shard in shards:
        for row, index in enumerate(shard.indices.tolist()):
            found.setdefault(index, (shard, row))
    rows = [found[index] for index in indices]
    reasons = tuple(shard.reasons[row] for shard, row in rows)
    return {
        "fim": Block(np.stack([shard.quantiles[row] for shard, row in rows]), reasons),
        "fim_null": Block(np.stack([shard.null_mass[row] for shard, row in rows]), reasons),
    }
