"""The feature store: computed Fisher spectra on disk, in shards, so that nothing is lost.

One folder an exact key (catalogue, network source, data batch, options, version); each shard is a
Parquet file written under a temporary name and renamed, so a shard that exists is complete. A
damaged or unreadable one is computed again.
"""

from __future__ import annotations

import hashlib
import json
import os
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from bo_act.library import cache_dir

SHARD = 128
"""Functions a shard: a few seconds of work for a small network."""


@dataclass(frozen=True)
class Shard:
    """Fisher features of a run of functions.

    Attributes:
        quantiles: (rows, L · Q) float32, NaN where missing.
        null_mass: (rows, L) float32, NaN where missing.
        reasons: why a row is missing, or ``""``.
    """

    quantiles: np.ndarray
    null_mass: np.ndarray
    reasons: list[str]


class FeatureStore:
    """A folder of shards for one exact set of circumstances.

    Args:
        key: everything that the numbers depend on; JSON-serializable.
        root: parent of all such folders; default: ``features`` in the cache folder.
    """

    def __init__(self, key: Mapping[str, Any], *, root: Path | None = None) -> None:
        text = json.dumps(key, sort_keys=True)
        digest = hashlib.sha256(text.encode()).hexdigest()[:24]
        self.folder = (root or cache_dir() / "features") / digest
        self.folder.mkdir(parents=True, exist_ok=True)
        self._replace(self.folder / "key.json", text.encode())

    def read(self, number: int, rows: int) -> Shard | None:
        """Return a shard, or None where it has to be computed."""
        path = self._path(number)
        if not path.is_file():
            return None
        try:
            table = pq.read_table(path, page_checksum_verification=True)
            if table.num_rows != rows:
                raise ValueError(f"{table.num_rows} rows instead of {rows}")
            return Shard(
                np.stack(table["quantiles"].to_numpy()).astype(np.float32),
                np.stack(table["null_mass"].to_numpy()).astype(np.float32),
                table["reason"].to_pylist(),
            )
        except (OSError, pa.ArrowException, KeyError, ValueError) as error:
            warnings.warn(f"{path} cannot be read and is computed again: {error}", stacklevel=2)
            return None

    def write(self, number: int, shard: Shard) -> None:
        """Keep a shard."""
        table = pa.table(
            {
                "quantiles": pa.array(list(shard.quantiles), type=pa.list_(pa.float32())),
                "null_mass": pa.array(list(shard.null_mass), type=pa.list_(pa.float32())),
                "reason": pa.array(shard.reasons, type=pa.string()),
            }
        )
        buffer = pa.BufferOutputStream()
        pq.write_table(table, buffer, compression="zstd", write_page_checksum=True)
        self._replace(self._path(number), buffer.getvalue().to_pybytes())

    def _path(self, number: int) -> Path:
        return self.folder / f"fim-{number:05d}.parquet"

    @staticmethod
    def _replace(path: Path, content: bytes) -> None:
        temporary = path.with_name(f".{path.name}.{os.getpid()}")
        temporary.write_bytes(content)
        temporary.replace(path)
