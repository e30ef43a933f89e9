"""Computing the feature table of a catalogue for one network and one batch of data."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import closing, suppress
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bo_act.errors import ExpressionError, FeatureError
from bo_act.features.act_bench import bins
from bo_act.features.fisher_worker import FisherJob, FunctionBatch, MakeNetwork, Spectra
from bo_act.features.outputs import output_blocks
from bo_act.features.store import SHARD, FeatureStore, Shard
from bo_act.features.subset import spread
from bo_act.features.table import NOT_COMPUTED, Block, FeatureTable
from bo_act.fisher.calls import Inputs, Targets, as_tensor, mapped
from bo_act.fisher.loss import inferred
from bo_act.fisher.spectra import FimSpectra
from bo_act.spaces.catalogue import Catalogue
from bo_act.spaces.space import Space
from bo_act.specs import FeaturesSpec
from bo_act.specs.base import MOST_WORKERS, whole

ALGORITHM = 6
"""Raised whenever the numbers change for the same inputs, so that old caches are left aside."""

Progress = Callable[[int, int], None]
Executor = Literal["process", "ray"]


def compute_features(
    space: Space | Catalogue,
    *,
    network: MakeNetwork | None = None,
    inputs: Inputs | None = None,
    targets: Targets | None = None,
    spec: FeaturesSpec | None = None,
    device: str | torch.device = "cpu",
    key: dict[str, Any] | None = None,
    cache: Path | None = None,
    progress: Progress | None = None,
    workers: int = 1,
    executor: Executor = "process",
    threads: int | None = None,
) -> FeatureTable:
    """Compute the features of every function of a space.

    Args:
        space: the space, or its catalogue of N functions.
        network: called with an ``Activation`` (a module, and a factory of fresh ones), returns the
            untrained network. None: no Fisher spectra. torch's seed is ``spec.seed`` at each call,
            so that all networks start alike.
        inputs: one batch of training data for the Fisher matrix, as the network takes it: a tensor
            or array (B, ...) of images, tokens or numbers; or a dict or tuple of some, for
            ``network(**inputs)`` or ``network(*inputs)``. Floating-point numbers become those of
            ``spec.precision``; others stay.
        targets: as for ``fim_spectra``; needed only if ``spec.fisher`` is ``"empirical"``.
        spec: options.
        device: where the networks run.
        key: identifies the network; if given, spectra are cached on disk. If the cache cannot be
            written, bo-act warns and continues.
        cache: cache folder; default: the usual one.
        progress: called with (spectra done, spectra in all), first with those from the cache.
        workers: number of parallel workers; with ``process``, 1 is this process itself.
        executor: ``process`` runs workers on this machine, ``ray`` on a Ray cluster.
        threads: CPU threads of each worker process; default: an equal share of the cores.

    Examples:
        >>> import torch
        >>> from torch import nn
        >>> from bo_act import FeaturesSpec, load_space
        >>> def network(activation):
        ...     return nn.Sequential(nn.Linear(6, 8), activation(), nn.Linear(8, 1), nn.Flatten(0))
        >>> table = compute_features(
        ...     load_space("classic"),
        ...     network=network,
        ...     inputs=torch.randn(32, 6),
        ...     targets=torch.randn(32),  # numbers, so that the loss is "mse"
        ...     spec=FeaturesSpec(quantiles=16),
        ... )
        >>> table.blocks["fim"].values.shape, table.provenance["layers"]
        ((34, 32), ('0', '2'))

    Raises:
        FeatureError: the Fisher spectra cover no layer of the network, ``network`` comes without a
            batch, or the workers fail.
    """
    catalogue = space.catalogue if isinstance(space, Space) else space
    spec = spec or FeaturesSpec()
    whole(workers, "workers", low=1, high=MOST_WORKERS, error=FeatureError)
    if executor not in get_args(Executor):
        raise FeatureError(f"expected the executor 'process' or 'ray', got {executor!r}")
    if spec.of is not None:
        raise FeatureError(
            f"features.of = {spec.of!r} is for study files; here, give network and inputs"
        )
    blocks = output_blocks(catalogue)
    provenance: dict[str, Any] = {"algorithm": ALGORITHM, "catalogue": catalogue.hash}
    if network is None or not spec.fim:
        return FeatureTable(catalogue.hash, blocks, provenance)
    if inputs is None or (targets is None and spec.fisher == "empirical"):
        raise FeatureError(
            "Fisher spectra need a batch: give inputs with the network, and targets for "
            "fisher='empirical', or leave the network out for output features only"
        )
    job = FisherJob(
        network, mapped(inputs, _kept), None if targets is None else _kept(targets), spec
    )
    provenance |= {
        "torch": torch.__version__.split("+")[0],
        "network": key,
        "batch": job.batch_digest(),
        # The other options choose functions and batch; they change no number.
        "options": spec.model_dump(exclude={"fim", "of", "subset", "batch_size"})
        | {"loss": inferred(spec.loss, job.targets)},
    }
    store = None if key is None else _open_store(provenance, cache)
    spectra = Spectra(job, torch.device(device))
    # An ordinary network first, so that a network without covered layers is one error, not 2,826
    # missing rows.
    probe = spectra.probe
    _warn_of_uncovered(probe)
    wanted = _wanted(catalogue, blocks, spec.subset)
    missing = wanted if store is None else _missing(store, wanted, catalogue)
    rows = _Rows(blocks["outputs"], wanted, probe)
    done = len(wanted) - len(missing)
    if progress:
        progress(done, len(wanted))
    pieces = _pieces(catalogue, missing)
    with closing(_shards(spectra, pieces, workers, executor, threads)) as shards:
        for shard in shards:
            if store is not None:
                store.keep(shard)
            rows.put(shard)
            done += len(shard.indices)
            if progress:
                progress(done, len(wanted))
    if store is not None:
        # Read back even the new rows: if another process stored some first, all processes must use
        # the same table.
        rows.reopen()
        for shard in store.shards():
            rows.put(shard)
    provenance |= {
        "subset": spec.subset,
        "layers": probe.layers,
        # Layers of a released vector.
        "bins": [
            bins(int(weights)) if kind == "weight" else 0
            for weights, kind in zip(probe.weights, probe.kinds, strict=True)
        ],
        "uncovered": probe.uncovered,
        "store": None if store is None else {"folder": str(store.folder), "bytes": store.size},
    }
    fim = rows.blocks()
    _warn_of_meaningless(fim)
    return FeatureTable(catalogue.hash, blocks | fim, provenance)


def _kept(values: Targets) -> Tensor:
    return as_tensor(values).detach().cpu()


def _open_store(key: Mapping[str, Any], root: Path | None) -> FeatureStore | None:
    try:
        return FeatureStore(key, root=root)
    except FeatureError as error:
        warnings.warn(f"{error}; this process continues without saving spectra", stacklevel=3)
        return None


def _wanted(
    catalogue: Catalogue, blocks: Mapping[str, Block], subset: int | None
) -> NDArray[np.int64]:
    """Return the ascending indices of the functions that need spectra."""
    outputs = blocks["outputs"]
    if subset is None or subset >= len(catalogue):
        return np.flatnonzero(outputs.present)
    include = []
    for baseline in catalogue.space.baselines:
        with suppress(ExpressionError):  # a baseline may be outside the space
            include.append(catalogue.index(baseline))
    present = [index for index in dict.fromkeys(include) if outputs.present[index]]
    return spread(blocks, subset, include=present)


def _missing(
    store: FeatureStore, wanted: NDArray[np.int64], catalogue: Catalogue
) -> NDArray[np.int64]:
    """Return the wanted functions that a store lacks; warn if it had them once."""
    state = store.state(wanted)
    if state.damaged:
        files = ", ".join(f"{file} ({damage})" for file, damage in list(state.damaged.items())[:5])
        more = f" and {len(state.damaged) - 5} more" if len(state.damaged) > 5 else ""
        lost = FunctionBatch.of(catalogue, state.lost)
        warnings.warn(
            f"damaged shards in {store.folder}: {files}{more}; recomputing the spectra of "
            f"{len(lost.indices)} functions: {lost}",
            stacklevel=3,
        )
    return state.missing


def _warn_of_uncovered(probe: FimSpectra) -> None:
    if probe.uncovered:
        warnings.warn(
            f"not covered by the Fisher matrix: {', '.join(probe.uncovered)}; the spectra of the "
            f"other {len(probe.layers)} layers do not reflect these parameters",
            stacklevel=3,
        )


def _warn_of_meaningless(fim: Mapping[str, Block]) -> None:
    """Warn of spectra that are the same for all functions."""
    present = fim["fim"].present
    values, null = fim["fim"].values[present], fim["fim_null"].values[present]
    if len(values) < 2:
        return
    if (null == 1).all():
        said = "null throughout: no gradient reaches any layer of the network"
    elif np.ptp(values, axis=0).max() == 0 and np.ptp(null, axis=0).max() == 0:
        said = "equal: the network does not depend on `activation`"
    else:
        return
    warnings.warn(
        f"the Fisher spectra of all {len(values)} functions are {said}, so they cannot tell "
        "functions apart; check the network, or set features.fim = false",
        stacklevel=3,
    )


def _pieces(catalogue: Catalogue, indices: NDArray[np.int64]) -> list[FunctionBatch]:
    starts = range(0, len(indices), SHARD)
    return [FunctionBatch.of(catalogue, indices[start : start + SHARD]) for start in starts]


def _shards(
    spectra: Spectra,
    pieces: Sequence[FunctionBatch],
    workers: int,
    executor: Executor,
    threads: int | None,
) -> Generator[Shard]:
    """Compute batches of functions; yield shards in the order of completion."""
    if executor == "process" and workers == 1:
        for piece in pieces:
            yield spectra.shard(piece)
    elif pieces:
        if executor == "ray":
            from bo_act.features.ray_tasks import compute_with_ray as compute
        else:
            from bo_act.process_pool import compute_in_processes as compute
        yield from compute(
            spectra.job, pieces, device=spectra.device, workers=workers, threads=threads
        )


class _Rows:
    """The Fisher blocks of a catalogue while they are filled.

    Args:
        outputs: of all N functions; those without output features have no spectra either.
        wanted: indices of the functions that need spectra.
        probe: gives the width of a row.
    """

    def __init__(self, outputs: Block, wanted: NDArray[np.int64], probe: FimSpectra) -> None:
        layers, quantiles = probe.quantiles.shape
        count = len(outputs.reasons)
        self.quantiles = np.full((count, layers * quantiles), np.nan, dtype=np.float32)
        self.null_mass = np.full((count, layers), np.nan, dtype=np.float32)
        self.reasons = [reason and "output features are missing" for reason in outputs.reasons]
        for index in np.setdiff1d(np.flatnonzero(outputs.present), wanted):
            self.reasons[index] = NOT_COMPUTED
        self.wanted = wanted
        self.missing = np.zeros(count, dtype=bool)
        self.missing[wanted] = True
        self.reopen()

    def reopen(self) -> None:
        """Open the wanted rows for filling, filled ones again."""
        self.to_fill = np.zeros(len(self.missing), dtype=bool)
        self.to_fill[self.wanted] = True

    def put(self, shard: Shard) -> None:
        """Fill the open rows of a shard, and close them."""
        new = self.to_fill[shard.indices]
        places = shard.indices[new]
        self.quantiles[places] = shard.quantiles[new]
        self.null_mass[places] = shard.null_mass[new]
        for position, row in zip(places.tolist(), np.flatnonzero(new).tolist(), strict=True):
            self.reasons[position] = shard.reasons[row]
        self.to_fill[places] = self.missing[places] = False

    def blocks(self) -> dict[str, Block]:
        """Return the blocks, all rows filled.

        Raises:
            FeatureError: stored rows were lost.
        """
        if self.missing.any():
            raise FeatureError(
                f"the spectra of {int(self.missing.sum())} functions were saved but can no longer "
                "be read: something removes or damages the files; check the disk and run again"
            )
        reasons = tuple(self.reasons)
        return {"fim": Block(self.quantiles, reasons), "fim_null": Block(self.null_mass, reasons)}
