"""The feature store: computed Fisher spectra on disk, so that nothing is computed twice.

One folder per exact key (everything that the numbers depend on), with

    key.json           the key, for people
    fim-….parquet      a shard: the rows of some functions, named by its content
    manifest.jsonl     one line a shard, written after it: file, checksum, functions, device, time

A shard is valid if it has a line and its bytes match the line's checksum. The store is the union
of its shards in the order of the manifest; of several rows of a function the first one counts.
Files never change in place, so any number of processes may use one store; a killed process leaves
at worst a shard without a line or a torn line, and readers ignore both.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import warnings
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from bo_act.content import MOVE_CACHE, cache_dir
from bo_act.errors import FeatureError
from bo_act.io import atomic_write, reason

SHARD = 128
"""Functions a shard: a few seconds of work for a small network."""

_NAME = re.compile(r"fim-[0-9a-f]{16}\.parquet")


@dataclass(frozen=True, eq=False)
class Shard:
    """Fisher features of n functions.

    Attributes:
        indices: (n,) int64, of the functions in their catalogue.
        quantiles: (n, L · Q) float32, NaN where missing.
        null_mass: (n, L) float32, NaN where missing.
        reasons: n texts: why a row is missing, or ``""``.
        device: where it was computed; only in the manifest.
        seconds: how long it took; only in the manifest.
    """

    indices: NDArray[np.int64]
    quantiles: NDArray[np.float32]
    null_mass: NDArray[np.float32]
    reasons: tuple[str, ...]
    device: str = ""
    seconds: float = 0.0


@dataclass(frozen=True, eq=False)
class _Line:
    """A line of the manifest: one shard."""

    file: str
    sha256: str
    bytes: int
    functions: NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class StoreState:
    """State of a store with respect to some wanted functions.

    Attributes:
        missing: ascending indices of the functions without a valid shard.
        lost: those of them in a damaged shard.
        damaged: name of each such shard → its damage.
    """

    missing: NDArray[np.int64]
    lost: NDArray[np.int64]
    damaged: Mapping[str, str]


class FeatureStore:
    """A folder of shards for one exact key.

    Args:
        key: everything that the numbers depend on; JSON-serializable.
        root: parent of all such folders; default: ``features`` in the cache folder.

    Raises:
        FeatureError: the folder cannot be made.
    """

    def __init__(self, key: Mapping[str, Any], *, root: Path | None = None) -> None:
        text = json.dumps(key, sort_keys=True)
        digest = hashlib.sha256(text.encode()).hexdigest()[:24]
        self.folder = (root or cache_dir() / "features") / digest
        self._manifest = self.folder / "manifest.jsonl"
        try:
            # Only if missing: a complete store can be read from a read-only disk.
            if not (self.folder / "key.json").is_file():
                self._write("key.json", (text + "\n").encode())
        except OSError as error:
            raise self._cannot_keep(error) from error
        self._unkept = False

    @property
    def size(self) -> int:
        """Bytes of all shards."""
        return sum(line.bytes for line in self._lines())

    def state(self, wanted: NDArray[np.int64]) -> StoreState:
        """Check the bytes of the shards with wanted functions, and return what is missing.

        Args:
            wanted: ascending indices of functions.
        """
        good: list[_Line] = []
        bad: list[tuple[_Line, str]] = []
        for line in self._lines():
            if not np.isin(line.functions, wanted).any():
                continue
            content, damage = self._content(line)
            if content is None:
                bad.append((line, damage))
            else:
                good.append(line)
        missing = np.setdiff1d(wanted, _functions(good))
        # Ignore damage that another shard makes up for.
        bad = [(line, damage) for line, damage in bad if np.isin(line.functions, missing).any()]
        return StoreState(
            missing,
            np.intersect1d(missing, _functions(line for line, _ in bad)),
            {line.file: damage for line, damage in bad},
        )

    def add(self, shard: Shard) -> None:
        """Save a shard.

        Raises:
            FeatureError: it cannot be written: no permission, no space. Earlier shards stay.
        """
        content = _to_parquet(shard)
        digest = hashlib.sha256(content).hexdigest()
        name = f"fim-{digest[:16]}.parquet"
        line = {
            "file": name,
            "sha256": digest,
            "bytes": len(content),
            "functions": shard.indices.tolist(),
            "device": shard.device,
            "seconds": round(shard.seconds, 3),
        }
        try:
            self._write(name, content)
            self._append(json.dumps(line, separators=(",", ":")))
        except OSError as error:
            raise self._cannot_keep(error) from error

    def keep(self, shard: Shard) -> None:
        """Save a shard; if that fails, warn once and continue."""
        try:
            self.add(shard)
        except FeatureError as error:
            if not self._unkept:
                self._unkept = True
                warnings.warn(
                    f"{error}; this process continues without saving spectra", stacklevel=2
                )

    def shards(self) -> Iterator[Shard]:
        """Yield the valid shards in the manifest's order."""
        for line in self._lines():
            content, _ = self._content(line)
            if content is not None:
                yield _from_parquet(content)

    # --- files --------------------------------------------------------------------------------

    def _lines(self) -> list[_Line]:
        """Return the readable lines, one per file."""
        try:
            text = self._manifest.read_bytes()
        except OSError:  # nothing saved, or unreadable
            return []
        return list({line.file: line for line in _parsed(text.splitlines())}.values())

    def _content(self, line: _Line) -> tuple[bytes | None, str]:
        """Return a shard's bytes, or None and the damage."""
        try:
            content = (self.folder / line.file).read_bytes()
        except FileNotFoundError:
            return None, "gone"
        except OSError as error:
            return None, f"cannot be read: {error.strerror}"
        if len(content) != line.bytes:
            return None, f"{len(content)} bytes instead of {line.bytes}"
        if hashlib.sha256(content).hexdigest() != line.sha256:
            return None, "altered"
        if not np.array_equal(_indices(content), line.functions):
            return None, "its functions differ from the manifest's"
        return content, ""

    def _append(self, line: str) -> None:
        with self._manifest.open("a+b", buffering=0) as manifest:
            end = manifest.seek(0, os.SEEK_END)
            torn = False
            if end:
                manifest.seek(end - 1)
                torn = manifest.read(1) != b"\n"
            # One appending write, so that lines of two processes never mix.
            content = ("\n" * torn + line + "\n").encode()
            if manifest.write(content) != len(content):
                raise OSError(errno.ENOSPC, "no space left for the manifest")

    def _write(self, name: str, content: bytes) -> None:
        atomic_write(self.folder / name, content, sync=False)

    def _cannot_keep(self, error: OSError) -> FeatureError:
        return FeatureError(
            f"features cannot be kept in {self.folder}: {reason(error, MOVE_CACHE)}; earlier "
            "features stay"
        )


def _parsed(lines: Iterable[bytes]) -> Iterator[_Line]:
    """Yield the valid lines; skip torn ones."""
    for text in lines:
        try:
            entry = json.loads(text)
            parsed = _Line(
                file=entry["file"],
                sha256=entry["sha256"],
                bytes=int(entry["bytes"]),
                functions=np.array(entry["functions"], dtype=np.int64).reshape(-1),
            )
            if _NAME.fullmatch(parsed.file):
                yield parsed
        except (ValueError, TypeError, KeyError, OverflowError, RecursionError):
            continue


def _functions(lines: Iterable[_Line]) -> NDArray[np.int64]:
    return np.concatenate([np.empty(0, dtype=np.int64), *(line.functions for line in lines)])


def _to_parquet(shard: Shard) -> bytes:
    def lists(values: NDArray[np.float32]) -> pa.Array:
        flat = pa.array(np.ascontiguousarray(values, dtype=np.float32).reshape(-1))
        return pa.FixedSizeListArray.from_arrays(flat, values.shape[1])

    table = pa.table(
        {
            "index": pa.array(shard.indices, type=pa.int64()),
            "quantiles": lists(shard.quantiles),
            "null_mass": lists(shard.null_mass),
            "reason": pa.array(shard.reasons, type=pa.string()),
        }
    )
    buffer = pa.BufferOutputStream()
    # Group bytes by significance: sorted numbers shrink to about half.
    floats = ["quantiles.list.element", "null_mass.list.element"]
    pq.write_table(
        table,
        buffer,
        compression="zstd",
        use_dictionary=["reason"],
        use_byte_stream_split=floats,
    )
    content: bytes = buffer.getvalue().to_pybytes()
    return content


def _indices(content: bytes) -> NDArray[np.int64]:
    table = pq.read_table(pa.BufferReader(content), columns=["index"], use_threads=False)
    indices: NDArray[np.int64] = table["index"].to_numpy()
    return indices


def _from_parquet(content: bytes) -> Shard:
    table = pq.read_table(pa.BufferReader(content))

    def numbers(column: str) -> NDArray[np.float32]:
        array = table[column].combine_chunks()
        flat: NDArray[np.float32] = array.flatten().to_numpy()
        return flat.reshape(len(array), -1)

    return Shard(
        indices=table["index"].to_numpy(),
        quantiles=numbers("quantiles"),
        null_mass=numbers("null_mass"),
        reasons=tuple(table["reason"].to_pylist()),
    )
