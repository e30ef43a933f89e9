"""Catalogues of big spaces cached on disk, so that a million expressions are deduplicated once.

One file per space. A damaged file is rebuilt; if no file can be written, bo-act warns and
continues.
"""

from __future__ import annotations

import io
import warnings
from pathlib import Path

import numpy as np

from bo_act.content import MOVE_CACHE, cache_dir
from bo_act.errors import ExpressionError
from bo_act.io import one_line, read_checked, reason, write_checked
from bo_act.spaces.catalogue import OF_FUNCTIONS, Catalogue
from bo_act.spaces.deduplication import Progress
from bo_act.spaces.enumeration import Enumeration
from bo_act.specs.space import LISTED

ALGORITHM = 2
"""Raised whenever a catalogue of the same space, or its file, changes: old files are left aside."""

KEPT_FROM = 100_000
"""Expressions from which on a catalogue is kept; smaller ones take less than a second or two."""


def load_catalogue(space: Enumeration, *, progress: Progress | None = None) -> Catalogue:
    """Return the catalogue of a space from the cache, or build it, and cache it if it is big.

    Args:
        space: where the expressions come from.
        progress: as in ``Catalogue.build``; not called if the catalogue is cached.

    Raises:
        ExpressionError: the space is too large to list.
    """
    if not space.can_be_listed:
        raise ExpressionError(
            f"the space {space.name!r} has {len(space):,} expressions, and at most {LISTED:,} "
            "can be listed; `bo-act run` searches it locally "
            '(candidates = "trees"), everything else needs a smaller space'
        )
    if len(space) < KEPT_FROM:
        return Catalogue.build(space, progress=progress)
    path = cache_dir() / "catalogues" / f"{space.hash}-{ALGORITHM}.npz"
    if path.is_file():
        try:
            return _read(path, space)
        except Exception as error:  # a cache may fail in any way
            why = one_line(error)
            warnings.warn(f"{path} cannot be read and is rebuilt: {why}", stacklevel=2)
    catalogue = Catalogue.build(space, progress=progress)
    try:
        _write(path, catalogue)
    except OSError as error:
        warnings.warn(
            f"the catalogue cannot be saved in {path.parent} and is rebuilt on every run: "
            f"{reason(error, MOVE_CACHE)}",
            stacklevel=2,
        )
    return catalogue


def _read(path: Path, space: Enumeration) -> Catalogue:
    with np.load(io.BytesIO(read_checked(path)), allow_pickle=False) as content:
        group = content["group"].astype(np.int64)
        representative, shortest, finite, keys = (content[name] for name in OF_FUNCTIONS)
    functions = int(group.max()) + 1
    shapes = (len(group), representative.shape, shortest.shape, finite.shape, keys.shape)
    if shapes != (len(space), *[(functions,)] * len(OF_FUNCTIONS)):
        raise ValueError(f"arrays of {shapes} for {functions} functions of {len(space)}")
    return Catalogue(space, representative, shortest, group, finite, keys)


def _write(path: Path, catalogue: Catalogue) -> None:
    buffer = io.BytesIO()
    arrays = {name: getattr(catalogue, name) for name in OF_FUNCTIONS}
    np.savez(buffer, group=catalogue.group.astype(np.int32), **arrays)
    write_checked(path, buffer.getbuffer())
