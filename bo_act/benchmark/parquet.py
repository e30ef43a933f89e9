"""Benchmark files: one self-contained Parquet file with a row per function.

The file contains the space and the Fisher spectra; output features are recomputed on reading.
"""

from __future__ import annotations

import hashlib
import json
import warnings
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from bo_act import content
from bo_act.benchmark.act_bench import READER, read_act_bench
from bo_act.benchmark.table import MEASURED, Benchmark
from bo_act.errors import BenchmarkError
from bo_act.features.outputs import output_blocks
from bo_act.features.table import Block, FeatureTable
from bo_act.io import atomic_write, expanded, one_line, read_checked, reason, write_checked
from bo_act.metrics import ACCURACY, Metric
from bo_act.spaces.space import Space
from bo_act.specs import SpaceSpec
from bo_act.specs.space import LISTED

FORM = 1
"""Raised whenever files of the form before cannot be read as they are."""

SPECTRUM_ERROR = 2.0**-11
"""Relative error of kept spectra, whose numbers keep 11 bits so that they compress well."""

_MOST_VALUES = 1 << 30  # spectra of a network of five layers for a million functions: 600 million
_MOST_BYTES = 1 << 33

_SHARED = 10_000
"""Expressions of a space up to which its benchmarks share one catalogue and output features."""

_KEY = b"bo-act benchmark"
_SPECTRA = ("fim", "fim_null")


def save(benchmark: Benchmark, path: Path) -> None:
    """Write a benchmark atomically.

    Raises:
        BenchmarkError: it cannot be written.
    """
    try:
        atomic_write(path, _packed(benchmark))
    except OSError as error:
        raise BenchmarkError(f"cannot write {path}: {reason(error)}") from error


def _packed(benchmark: Benchmark) -> memoryview:
    """Return the content of a benchmark file."""
    catalogue = benchmark.space.catalogue
    columns: dict[str, pa.Array] = {
        "activation": pa.array([catalogue.text(index) for index in range(len(catalogue))])
    }
    columns |= {name: _lists(benchmark.runs[name].astype(np.float32)) for name in MEASURED}
    columns["diverged"] = _lists(benchmark.diverged)
    if benchmark.curves is not None:
        columns["curve"] = _lists(benchmark.curves.reshape(len(benchmark), -1))
    features = benchmark.features
    for kind in _SPECTRA:
        if kind in features.blocks:
            block = features.blocks[kind]
            columns[kind] = _lists(_rounded(block.values))
            columns[f"{kind}_reason"] = pa.array(block.reasons).dictionary_encode()
    about = {
        "form": FORM,
        "name": benchmark.name,
        "chance": benchmark.chance,
        "metric": benchmark.metric.as_json(),
        "space": benchmark.space.spec.model_dump(mode="json"),
        "catalogue": catalogue.hash,
        "provenance": benchmark.provenance,
        "unmatched": benchmark.unmatched,
        "features": {k: v for k, v in features.provenance.items() if k != "store"},
    }
    table = pa.table(columns).replace_schema_metadata({_KEY: json.dumps(about)})
    buffer = pa.BufferOutputStream()
    pq.write_table(
        table,
        buffer,
        compression="zstd",
        compression_level=15,
        use_dictionary=["activation", "diverged", *(f"{kind}_reason" for kind in _SPECTRA)],
        row_group_size=1 << 20,
        write_page_checksum=True,
    )
    return memoryview(buffer.getvalue())


def load(path: Path) -> Benchmark:
    """Read a benchmark file.

    Raises:
        BenchmarkError: it is not a benchmark file, is damaged, or this version numbers its
            functions differently.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise BenchmarkError(f"{path} cannot be read: {reason(error)}") from error
    return _unpacked(content, path)


def _unpacked(content: bytes | memoryview, path: Path) -> Benchmark:
    """Return the benchmark in a file's content; the path is for errors."""
    try:
        _check_size(pq.ParquetFile(pa.BufferReader(content)).metadata)
        table = pq.read_table(pa.BufferReader(content), page_checksum_verification=True)
    except Exception as error:  # Arrow raises many kinds over damaged files
        raise BenchmarkError(
            f"{path}: cannot be read as a Parquet file: {one_line(error)}"
        ) from error
    packed = (table.schema.metadata or {}).get(_KEY)
    if packed is None:
        raise BenchmarkError(
            f"{path}: expected a benchmark file, got another kind of Parquet file; `bo-act bench "
            "build` makes benchmark files"
        )
    try:
        about = json.loads(packed)
        if about["form"] != FORM:
            raise BenchmarkError(
                f"{path}: expected a benchmark file of format {FORM}, got format {about['form']}; "
                f"read it with the version of bo-act that wrote it"
            )
        space, outputs = _functions(SpaceSpec.model_validate(about["space"]))
        if space.catalogue.hash != about["catalogue"]:
            raise BenchmarkError(
                f"{path}: the functions of its space {space.name!r} have other numbers in this "
                "version of bo-act, because operators or deduplication changed; build it again"
            )
        return _read(table, about, space, outputs)
    except BenchmarkError:
        raise
    except Exception as error:  # damaged content may raise anything
        raise BenchmarkError(f"{path}: the file is damaged: {one_line(error)}") from error


def _functions(spec: SpaceSpec) -> tuple[Space, dict[str, Block]]:
    """Return the space of a file, with its catalogue, and the output features."""
    return (_shared if len(Space(spec)) <= _SHARED else _computed)(spec)


def _computed(spec: SpaceSpec) -> tuple[Space, dict[str, Block]]:
    space = Space(spec)
    return space, output_blocks(space.catalogue)


_shared = lru_cache(maxsize=4)(_computed)


def _check_size(about: pq.FileMetaData) -> None:
    """Refuse a file that would fill the memory: a few bytes may encode any number of values."""
    groups = [about.row_group(index) for index in range(about.num_row_groups)]
    values = sum(
        group.column(index).num_values for group in groups for index in range(group.num_columns)
    )
    size = sum(group.total_byte_size for group in groups)
    if about.num_rows > LISTED or values > _MOST_VALUES or size > _MOST_BYTES:
        raise ValueError(
            f"it has {about.num_rows:,} rows with {values:,} values, {size:,} bytes; at most "
            f"{LISTED:,} functions with {_MOST_VALUES:,} values are read"
        )


def open_benchmark(name: str) -> Benchmark:
    """Open a benchmark by name or path.

    A file in Act-Bench format is converted once and cached, if the cache folder is writable.

    Args:
        name: a shipped benchmark's name, or the path of a ``.parquet`` file, or of a ``.json`` or
            ``.json.gz`` file in Act-Bench format.

    Raises:
        ContentNotFoundError: there is no such file.
        BenchmarkError: the file is not a benchmark.

    Examples:
        >>> open_benchmark("digits_mlp").name
        'digits_mlp'
    """
    if not name.endswith((".json", ".json.gz")):
        return load(content.find("studies/benchmarks", name))
    path = expanded(name)
    if not path.is_file():
        raise BenchmarkError(f"no benchmark file {name!r} (looked in {Path.cwd()})")
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()[:32]
    name = path.name.removesuffix(".gz").removesuffix(".json")
    kept = content.cache_dir() / "benchmarks" / f"{digest}-{FORM}.{READER}.kept"
    if kept.is_file():
        try:
            return replace(_unpacked(read_checked(kept), kept), name=name)
        except (OSError, ValueError, BenchmarkError) as error:
            warnings.warn(f"{kept} is damaged, converted again: {one_line(error)}", stacklevel=2)
    packed = _packed(read_act_bench(path))
    try:
        write_checked(kept, packed)
    except OSError as error:
        warnings.warn(
            f"{name} is converted on every run, since the result cannot be saved in {kept.parent}: "
            f"{reason(error, content.MOVE_CACHE)}",
            stacklevel=2,
        )
    # Use the rounded cached content now as well as later.
    return replace(_unpacked(packed, kept), name=name)


def _read(
    table: pa.Table, about: dict[str, Any], space: Space, outputs: dict[str, Block]
) -> Benchmark:
    count = len(space.catalogue)
    metric = Metric.read(about["metric"]) if "metric" in about else ACCURACY
    if metric is None:
        raise ValueError(f"it has the metric {about['metric']!r}")
    # Files without a metric have accuracies.
    column = "value" if "metric" in about else "accuracy"
    runs = {
        name: _array(table, name.replace("value", column)).astype(np.float64) for name in MEASURED
    }
    diverged = _array(table, "diverged").astype(bool)
    curves = None
    if "curve" in table.column_names:
        curves = _array(table, "curve").reshape(*diverged.shape, -1)
    blocks = dict(outputs)
    for kind in _SPECTRA:
        if kind in table.column_names:
            reasons = tuple(table.column(f"{kind}_reason").to_pylist())
            blocks[kind] = Block(_array(table, kind).reshape(count, -1), reasons)
    return Benchmark(
        about["name"],
        space,
        runs,
        diverged,
        about["chance"],
        FeatureTable(space.catalogue.hash, blocks, about["features"]),
        curves,
        about["provenance"],
        tuple(about["unmatched"]),
        metric,
    )


def _lists(values: NDArray[Any]) -> pa.Array:
    return pa.FixedSizeListArray.from_arrays(pa.array(values.ravel()), values.shape[1])


def _array(table: pa.Table, name: str) -> NDArray[Any]:
    column = table.column(name).combine_chunks()
    width = column.type.list_size
    values = column.flatten().to_numpy(zero_copy_only=False)
    return np.array(values).reshape(-1, width)


def _rounded(values: NDArray[np.float32]) -> NDArray[np.float32]:
    """Round to the nearest number with 11 bits, for compression."""
    bits = np.ascontiguousarray(values, dtype=np.float32).view(np.uint32)
    rounded = (bits + np.uint32(1 << 12)) & ~np.uint32((1 << 13) - 1)
    return np.where(np.isfinite(values), rounded.view(np.float32), values)
