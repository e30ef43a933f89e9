"""Files in the Act-Bench format: one JSON object, expression → record.

The format of Bingham and Miikkulainen (2023), arXiv 2301.05785. Files are read record by record,
so memory holds only the resulting arrays and one record.
"""

from __future__ import annotations

import gzip
import json
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bo_act.benchmark.cdf import cdf_vector, layer_ends, layer_quantiles
from bo_act.benchmark.records import as_json, read_records
from bo_act.benchmark.table import MEASURED, Benchmark
from bo_act.errors import BenchmarkError, ExpressionError
from bo_act.features.outputs import output_blocks
from bo_act.features.table import Block, FeatureTable
from bo_act.io import reason, replacing
from bo_act.metrics import ACCURACY
from bo_act.spaces.space import Space, load_space

READER = 1
"""Raised whenever the same file is read to another benchmark."""

KEYS = {
    "train_value": "Train Accuracy",
    "validation_value": "Validation Accuracy",
    "test_value": "Test Accuracy",
    "train_loss": "Train Loss",
    "validation_loss": "Validation Loss",
    "test_loss": "Test Loss",
    "seconds": "Runtime (s)",
}
"""Metric → its key in a record."""

_VECTOR = "Fisher log eigenvalue CDF"
_SPELLINGS = "Equivalent Activation Functions"

Vectors = Callable[[int], NDArray[np.float64] | None]

# Far above the released files, but bearable for a machine.
_MOST_RECORDS = 1_000_000
_MOST_NUMBERS = 1 << 28  # of all vectors: 1 GB
_CLASSES = (2, 3, 5, 10, 20, 50, 100, 200, 365, 1000)
# A network that learns nothing predicts one class, whose share of the images is not quite 1/C.
_AT_CHANCE = 1.1


def read_act_bench(
    path: Path,
    *,
    space: Space | None = None,
    chance: float | None = None,
    progress: Callable[[int], None] | None = None,
) -> Benchmark:
    """Read a released file, plain or compressed with gzip.

    Records without a function in the space are listed in ``unmatched``. Records of the same
    function are merged: medians of their values, the first spectrum. Vectors that are null, empty
    or of an unusual length give no spectral features. The histograms of log eigenvalues become
    quantiles; the range of a layer's histogram is assumed to be [-100, 100], as in the released
    files, which only scales the quantiles.

    Args:
        path: ``.json`` or ``.json.gz``.
        space: of the functions; default: ``act_bench``.
        chance: accuracy of guessing; default: the one of 1/2 to 1/1000 nearest to the low end (the
            5% quantile) of the validation accuracies.
        progress: called with the number of records read.

    Returns:
        A benchmark of one run. ``diverged`` are functions with at most 1.1 times the accuracy of
        chance: the file does not distinguish divergence from learning nothing.

    Raises:
        BenchmarkError: the file is truncated, damaged or of another format; the message names the
            record.
    """
    space = space or load_space("act_bench")
    catalogue = space.catalogue
    values: dict[int, list[list[float]]] = {}
    vectors: dict[int, NDArray[np.float32]] = {}
    unmatched = []
    count = kept_numbers = 0
    for key, record in read_records(path):
        where = f"{path}: record {key!r}"
        numbers = [_number(record, metric, where) for metric in MEASURED]
        vector, spellings = _vector(record, where), _spellings(record, where)
        index = _index(space, [key, *spellings])
        if index is None:
            unmatched.append(key)
        else:
            values.setdefault(index, []).append(numbers)
            before = len(vectors.get(index, ()))
            if vector is not None and before <= len(vector):
                vectors[index] = vector
                kept_numbers += len(vector) - before
        count += 1
        if count > _MOST_RECORDS or kept_numbers > _MOST_NUMBERS:
            raise BenchmarkError(
                f"{where}: the file has more than {_MOST_RECORDS:,} records, or {_MOST_NUMBERS:,} "
                "numbers in their vectors, too many for an Act-Bench file"
            )
        if progress is not None:
            progress(count)
    if not values:
        raise BenchmarkError(
            f"{path}: none of its {count} records is a function of the space {space.name!r}"
        )
    runs = {metric: np.full((len(catalogue), 1), np.nan) for metric in MEASURED}
    for index, rows in values.items():
        for metric, column in zip(MEASURED, zip(*rows, strict=True), strict=True):
            known = [number for number in column if np.isfinite(number)]
            runs[metric][index] = np.median(known) if known else np.nan
    accuracy = runs["validation_value"][:, 0]
    if not np.isfinite(accuracy).any():
        raise BenchmarkError(f"{path}: none of its {count} records has a validation accuracy")
    if chance is None:
        shares = 1 / np.array(_CLASSES)
        low = max(float(np.nanquantile(accuracy, 0.05)), 1e-6)
        chance = float(shares[np.argmin(np.abs(np.log(shares / low)))])
    present = np.array(sorted(values))
    accuracy[present] = np.where(np.isfinite(accuracy[present]), accuracy[present], chance)
    blocks = dict(output_blocks(catalogue))
    spectra, layers = _spectra(len(catalogue), present, vectors)
    name = path.name.removesuffix(".gz").removesuffix(".json")
    return Benchmark(
        name,
        space,
        runs,
        (runs["validation_value"] <= _AT_CHANCE * chance),
        chance,
        FeatureTable(catalogue.hash, blocks | spectra, {"source": path.name, "bins": layers}),
        None,
        {
            "source": path.name,
            "records": count,
            "merged": sum(len(rows) - 1 for rows in values.values()),
        },
        tuple(unmatched),
    )


def write_act_bench(benchmark: Benchmark, path: Path, *, vectors: Vectors | None = None) -> None:
    """Write a benchmark in the Act-Bench format, compressed if the name ends in ``.gz``.

    Values are medians over the runs. Spectra are distribution functions of log eigenvalues over
    [-100, 100].

    Args:
        benchmark: what to write.
        path: ``.json`` or ``.json.gz``.
        vectors: from an index of the catalogue to the function's vector, (n,) in [0, 1], of equal
            length for all, or None. Default: from the benchmark's quantiles, in 100 bins per layer.

    Raises:
        BenchmarkError: the file cannot be written, or the benchmark is not of accuracies.
    """
    if benchmark.metric != ACCURACY:
        raise BenchmarkError(
            f"the Act-Bench format stores accuracies, but the benchmark {benchmark.name!r} "
            f"measures {benchmark.metric}; use its .parquet file"
        )
    try:
        with replacing(path) as temporary:
            _write(benchmark, temporary, vectors, packed=path.suffix == ".gz")
    except OSError as error:
        raise BenchmarkError(f"cannot write {path}: {reason(error)}") from error


def _write(benchmark: Benchmark, path: Path, vectors: Vectors | None, *, packed: bool) -> None:
    catalogue = benchmark.space.catalogue
    order = np.argsort(catalogue.group, kind="stable")
    starts = np.searchsorted(catalogue.group[order], np.arange(len(catalogue) + 1))
    vectors = vectors or _of_quantiles(benchmark.features)
    with ExitStack() as stack:
        file: Any = stack.enter_context(path.open("wb"))
        if packed:  # no time stamp, so equal content gives equal files
            file = stack.enter_context(gzip.GzipFile("", "wb", fileobj=file, mtime=0))
        separator = "{"
        for index in np.flatnonzero(benchmark.measured):
            record: dict[str, Any] = {
                key: float(np.median(known)) if len(known) else np.nan
                for metric, key in KEYS.items()
                for known in [_finite(benchmark.runs[metric][index])]
            }
            same = order[starts[index] : starts[index + 1]]
            record[_SPELLINGS] = [str(benchmark.space.expression(int(n))) for n in same]
            vector = vectors(int(index))
            record[_VECTOR] = None if vector is None else np.round(vector, 6).tolist()
            text = f"{separator}{json.dumps(catalogue.text(int(index)))}: {json.dumps(record)}"
            file.write(text.encode())
            separator = ",\n"
        file.write(b"}\n")


def _of_quantiles(features: FeatureTable) -> Vectors:
    """Return a function that makes vectors of the stored quantiles, if there are any."""

    def vector(index: int) -> NDArray[np.float64] | None:
        fim = features.blocks.get("fim")
        if fim is None or not fim.present[index]:
            return None
        layers = features.blocks["fim_null"].values.shape[1]
        return np.array(cdf_vector(fim.values[index].reshape(layers, -1)))

    return vector


def _finite(values: NDArray[np.float64]) -> NDArray[np.float64]:
    return values[np.isfinite(values)]


def _spectra(
    count: int, present: NDArray[np.int64], vectors: dict[int, NDArray[np.float32]]
) -> tuple[dict[str, Block], list[int]]:
    """Return the blocks ``fim`` and ``fim_null``, if there are any spectra, and bins by layer."""
    lengths = Counter(len(vector) for vector in vectors.values() if len(vector))
    if not lengths:
        return {}, []
    usual = max(lengths, key=lambda length: (lengths[length], length))
    reasons = ["not in the file"] * count
    for index in present:
        reasons[index] = "no vector in the file"
    whole = {}
    for index, vector in vectors.items():
        if len(vector) == usual and np.isfinite(vector).all():
            whole[index] = vector
        elif len(vector) == usual:
            reasons[index] = "a vector with NaN or infinite numbers"
        elif len(vector):
            reasons[index] = f"a vector of {len(vector):,} numbers instead of the usual {usual:,}"
    ends = layer_ends(whole.values(), usual)
    rows: dict[int, NDArray[np.float32]] = {}
    for index, vector in whole.items():
        quantiles = layer_quantiles(vector, ends)
        if quantiles is None:
            reasons[index] = "a vector that is not a distribution function in some layer"
        else:
            rows[index] = quantiles
            reasons[index] = ""
    if not rows:
        return {}, []
    width = len(next(iter(rows.values())))
    fim = np.full((count, width), np.nan, dtype=np.float32)
    null = np.full((count, len(ends)), np.nan, dtype=np.float32)
    for index, row in rows.items():
        fim[index], null[index] = row, 0.0
    bins = np.diff([0, *ends]).tolist()
    return {"fim": Block(fim, tuple(reasons)), "fim_null": Block(null, tuple(reasons))}, bins


# --- records --------------------------------------------------------------------------------


def _index(space: Space, spellings: list[str]) -> int | None:
    for text in spellings:
        try:
            return space.catalogue.index(text)
        except ExpressionError:
            continue
    return None


def _number(record: dict[str, Any], metric: str, where: str) -> float:
    key = KEYS[metric]
    if key not in record and metric != "validation_value":
        return float("nan")
    value = record.get(key)
    if value is None and metric != "validation_value":
        return float("nan")
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise BenchmarkError(f"{where}: expected a number for {key!r}, got {as_json(value)}")
    try:
        number = float(value)
    except OverflowError as error:
        raise BenchmarkError(
            f"{where}: expected a valid number for {key!r}, got {as_json(value)}"
        ) from error
    if metric.endswith("value") and not (np.isnan(number) or 0 <= number <= 1):
        raise BenchmarkError(f"{where}: expected {key!r} in [0, 1], got {as_json(value)}")
    return number


def _vector(record: dict[str, Any], where: str) -> NDArray[np.float32] | None:
    value = record.get(_VECTOR)
    if value is None:
        return None
    if not isinstance(value, list):
        raise BenchmarkError(
            f"{where}: expected a list of numbers for {_VECTOR!r}, got {as_json(value)}"
        )
    try:
        with np.errstate(over="ignore"):  # infinite, reported as such
            vector = np.array([np.nan if v is None else v for v in value], dtype=np.float32)
    except (TypeError, ValueError, OverflowError) as error:
        raise BenchmarkError(
            f"{where}: expected only numbers in {_VECTOR!r}, got {as_json(value)}"
        ) from error
    if vector.ndim != 1:
        raise BenchmarkError(f"{where}: expected a flat list for {_VECTOR!r}, got a nested one")
    return vector


def _spellings(record: dict[str, Any], where: str) -> list[str]:
    value = record.get(_SPELLINGS) or []
    if not isinstance(value, list) or not all(isinstance(text, str) for text in value):
        raise BenchmarkError(f"{where}: expected texts for {_SPELLINGS!r}, got {as_json(value)}")
    return value
