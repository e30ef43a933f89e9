"""Deduplication: which expressions of a space are the same function, how stable and short each is.

It handles millions of expressions without building any. Every inner subtree is evaluated once per
filling, and rows that agree in every bit are stored once, since equal operands give equal results.
An expression is then an operator and the row numbers of its operands; each distinct tuple is
evaluated in a chunk that stays in the processor's cache, and only a 64-bit key of its values
remains.

Symbols: P points, E expressions, F fillings of a subtree, k operands, M tuples of operands.
"""

from __future__ import annotations

import hashlib
import math
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from torch import Tensor

from bo_act.activations.expressions import CONSTANTS, ONE, ZERO, Expression, X, simplified
from bo_act.activations.operators import OPERATORS
from bo_act.spaces.enumeration import Enumeration
from bo_act.spaces.schemas import Schema
from bo_act.spaces.stability import DTYPES, Probes, Rows, faults
from bo_act.specs import DomainSpec

Progress = Callable[[int, int], None]

# Values evaluated at once: 256 kB of float64 fit in the second-level cache, and torch does not
# split so few over threads, so results do not depend on the number of threads.
_CHUNK = 32_768

# A kernel may round its last few values differently. Multiples of this leave no such remainder, so
# a row has the same values alone and among others.
_LANES = 16

# Adding 1.5 · 2^52 to a float64 rounds it to an integer in the low bits.
_TO_INTEGER = 6755399441055744.0
# Cells of values that are not finite. Odd, because differences by a high power of two would weaken
# the key; larger than every finite cell, arcsinh(1.8e308) / 1e-12 = 7e14.
_NAN, _INFINITY = 2.0**50 - 1, 2.0**50 - 7


_CODES = {name: code for code, name in enumerate(("x", *OPERATORS))}


@dataclass(frozen=True)
class Grouping:
    """Properties of each of E expressions.

    Attributes:
        keys: (E,) uint64, equal where the functions are.
        finite: (E,) whether the function is finite at every point.
        faults: (E,) int64, how unstable the spelling is at zero and in the tails; 0 if the
            function is not finite.
        lengths: (E,) characters of the canonical form.
    """

    keys: np.ndarray
    finite: np.ndarray
    faults: np.ndarray
    lengths: np.ndarray


def grid(domain: DomainSpec) -> Tensor:
    """Return the domain's points, float64, the last repeated up to a multiple of 16."""
    x = torch.linspace(domain.low, domain.high, domain.points, device="cpu", dtype=torch.float64)
    return torch.cat([x, x[-1:].expand(-len(x) % _LANES)])


def fingerprints(values: Tensor, domain: DomainSpec) -> tuple[np.ndarray, np.ndarray]:
    """Return a key per function, equal if the functions are, and whether it is finite.

    The key is the multilinear hash of the cells, sum of cell · weight modulo 2^64 with odd random
    weights. Among a million different functions the chance that any two have one key is below 1e-7.

    Args:
        values: (rows, P) float64 on the domain's ``grid``.
        domain: gives the tolerance.

    Returns:
        (rows,) uint64 keys and (rows,) bool.
    """
    with np.errstate(all="ignore"):
        scaled = torch.from_numpy(np.arcsinh(values.numpy()))  # five times faster than torch.asinh
    finite = torch.isfinite(scaled.sum(dim=1))
    scaled.div_(domain.tolerance)
    torch.nan_to_num(scaled, nan=_NAN, posinf=_INFINITY, neginf=-_INFINITY, out=scaled)
    cells = scaled.add_(_TO_INTEGER).numpy().view(np.uint64)
    return np.einsum("ij,j->i", cells, _weights(cells.shape[1])), finite.numpy()


@cache
def _weights(points: int) -> np.ndarray:
    content = hashlib.shake_128(b"bo-act grouping").digest(8 * points)
    return np.frombuffer(content, dtype="<u8").astype(np.uint64) | np.uint64(1)


def group(space: Enumeration, progress: Progress | None = None) -> Grouping:
    """Evaluate all expressions of a space.

    Args:
        space: where the expressions come from.
        progress: called with (tuples evaluated, tuples in all).
    """
    schemas = (
        *space.schemas,
        *(Schema(str(single), single, ()) for single in space.named_expressions),
    )
    trees = _Trees(grid(space.spec.domain), 1 + sum(map(_inner_fillings, schemas)))
    lengths = np.empty(len(space), dtype=np.int64)
    # (operator, number of operands) → where in the enumeration and (k, F) rows of the operands
    work: dict[tuple[str, int], list[tuple[int, np.ndarray]]] = defaultdict(list)
    start = 0
    for schema in schemas:
        # x alone is the same function as identity(x).
        root = Expression("identity", (X,)) if schema.tree == X else schema.tree
        rows, forms = trees.operands(root, schema)
        for name in _choices(root, schema):
            work[name, len(rows)].append((start, rows))
            lengths[start : start + rows.shape[1]] = trees.lengths(name, forms)
            start += rows.shape[1]

    keys = np.empty(len(space), dtype=np.uint64)
    finite = np.empty(len(space), dtype=bool)
    fault_counts = np.empty(len(space), dtype=np.int64)
    distinct = {job: _distinct_operands(job[0], places) for job, places in work.items()}
    total = sum(tuples.shape[1] for tuples, _ in distinct.values())
    done = 0
    for (name, _), places in work.items():
        tuples, inverse = distinct.pop((name, len(places[0][1])))
        job_keys = np.empty(tuples.shape[1], dtype=np.uint64)
        job_finite = np.empty(tuples.shape[1], dtype=bool)
        for chunk, values in trees.evaluate(name, tuples):
            job_keys[chunk], job_finite[chunk] = fingerprints(values, space.spec.domain)
            done += len(values)
            if progress:
                progress(done, total)
        job_faults = np.where(job_finite, faults(name, tuples, trees.probes), 0)
        passed = 0
        for start, rows in places:
            here = slice(start, start + rows.shape[1])
            which = inverse[passed : passed + rows.shape[1]]
            keys[here], finite[here] = job_keys[which], job_finite[which]
            fault_counts[here] = job_faults[which]
            passed += rows.shape[1]
    return Grouping(keys, finite, fault_counts, lengths)


def _choices(node: Expression, schema: Schema) -> tuple[str, ...]:
    return next((slot.choices for slot in schema.slots if slot.name == node.name), (node.name,))


def _inner_fillings(schema: Schema) -> int:
    """Count the fillings of all inner subtrees of a schema."""

    def fillings(node: Expression) -> int:
        return len(_choices(node, schema)) * math.prod(map(fillings, node.arguments))

    return sum(map(fillings, schema.tree.nodes())) - fillings(schema.tree)


def _distinct_operands(
    name: str, places: list[tuple[int, np.ndarray]]
) -> tuple[np.ndarray, np.ndarray]:
    """Return the distinct tuples of operands over all places, and the inverse."""
    tuples = np.concatenate([rows for _, rows in places], axis=1)
    if name in CONSTANTS:
        tuples[:] = 0
    elif OPERATORS[name].commutative:
        # Exact but for the sign of zero, which keys ignore. Three and more operands are folded
        # from the left, so the order of the later ones changes the rounding.
        swapped = len(tuples) if name in ("max_n", "min_n") else 2
        tuples[:swapped] = np.sort(tuples[:swapped], axis=0)
    return _distinct(tuples)


def _distinct(tuples: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the distinct columns of (k, M) numbers, and each column's place among them."""
    codes = tuples[0]
    for row in tuples[1:]:
        # Ranks instead of codes: products of the ranges could leave 64 bits.
        codes = np.unique(codes, return_inverse=True)[1] * (row.max() + 1) + row
    _, first, inverse = np.unique(codes, return_index=True, return_inverse=True)
    return tuples[:, first], inverse


def _keys(values: Tensor, probed: list[Rows]) -> list[bytes]:
    """Return the bits of each row: values on the grid and at the probes."""
    parts = [values.numpy(), *(part.numpy() for rows in probed for part in rows)]
    return [b"".join(part.tobytes() for part in row) for row in zip(*parts, strict=True)]


class _Trees:
    """Distinct rows of values and canonical forms of all inner subtrees, by number.

    Args:
        x: (P,) points; x itself has row 0 and form 0.
        limit: of the number of distinct rows.
    """

    def __init__(self, x: Tensor, limit: int) -> None:
        # Untouched memory costs nothing.
        self.values = x.new_empty(limit, len(x))
        self.values[0] = x
        self.probes = tuple(Probes(dtype, limit) for dtype in DTYPES)
        self.rows = {_keys(self.values[:1], [probe.rows(slice(1)) for probe in self.probes])[0]: 0}
        self.forms = [X]
        self.texts = {"x": 0}

    def operands(self, node: Expression, schema: Schema) -> tuple[np.ndarray, np.ndarray]:
        """Return rows and forms, each (k, F), of all fillings of a node's operands.

        In the order of the enumeration: the last operand runs fastest.
        """
        parts = [self._fillings(argument, schema) for argument in node.arguments]
        fillings = np.indices([len(rows) for rows, _ in parts], dtype=np.int32)
        fillings = fillings.reshape(len(parts), -1)
        rows = np.stack([r[filling] for (r, _), filling in zip(parts, fillings, strict=True)])
        forms = np.stack([f[filling] for (_, f), filling in zip(parts, fillings, strict=True)])
        return rows, forms

    def _fillings(self, node: Expression, schema: Schema) -> tuple[np.ndarray, np.ndarray]:
        """Return (F,) rows and (F,) forms of all fillings of a subtree."""
        if node == X:
            return np.zeros(1, dtype=np.int64), np.zeros(1, dtype=np.int64)
        rows, forms = self.operands(node, schema)
        row_tuples, row_of = _distinct(rows)
        form_tuples, form_of = _distinct(forms)
        names = _choices(node, schema)
        all_rows = [self._rows(name, row_tuples)[row_of] for name in names]
        all_forms = [
            np.array([self._form(form) for form in self._simplified(name, form_tuples)])[form_of]
            for name in names
        ]
        return np.concatenate(all_rows), np.concatenate(all_forms)

    def evaluate(self, name: str, tuples: np.ndarray) -> Iterator[tuple[slice, Tensor]]:
        """Yield the values of an operator at (k, M) operands, chunk by chunk."""
        function = OPERATORS[name].function
        size = max(1, _CHUNK // self.values.shape[1])
        for start in range(0, tuples.shape[1], size):
            chunk = slice(start, start + size)
            yield chunk, function(*(self._select(numbers[chunk]) for numbers in tuples))

    def _select(self, numbers: np.ndarray) -> Tensor:
        first, last = int(numbers[0]), int(numbers[-1])
        if last - first == len(numbers) - 1 and (np.diff(numbers) == 1).all():
            return self.values[first : last + 1]  # the usual case with one operand: no copy
        return self.values.index_select(0, torch.from_numpy(numbers))

    def _rows(self, name: str, tuples: np.ndarray) -> np.ndarray:
        """Evaluate (k, M) operands, store new rows, and return the (M,) row numbers."""
        row_numbers = np.empty(tuples.shape[1], dtype=np.int64)
        for chunk, values in self.evaluate(name, tuples):
            known = len(self.rows)
            probed = [probe.evaluate(name, tuples[:, chunk]) for probe in self.probes]
            keys = _keys(values, probed)
            row_numbers[chunk] = [self.rows.setdefault(key, len(self.rows)) for key in keys]
            numbers, first = np.unique(row_numbers[chunk], return_index=True)
            new = torch.from_numpy(first[numbers >= known])
            self.values[known : len(self.rows)] = values[new]
            for probe, rows in zip(self.probes, probed, strict=True):
                probe.keep(slice(known, len(self.rows)), rows, new)
        return row_numbers

    def _form(self, form: Expression) -> int:
        number = self.texts.setdefault(str(form), len(self.forms))
        if number == len(self.forms):
            self.forms.append(form)
        return number

    def _simplified(self, name: str, tuples: np.ndarray) -> list[Expression]:
        """Return an operator's canonical forms with operands of the (k, M) forms."""
        return [simplified(name, tuple(self.forms[n] for n in c)) for c in tuples.T.tolist()]

    def lengths(self, name: str, forms: np.ndarray) -> np.ndarray:
        """Return the (F,) lengths of an operator's canonical forms with (k, F) operands.

        A unary operator simplifies by its operand's operator only, others if operands are equal,
        zero or one. Everything else is written out.
        """
        length = np.array([len(text) for text in self.texts])
        if len(forms) == 1:
            if name in CONSTANTS:
                return np.full(forms.shape[1], len(name) + len("(x)"))
            _, first, which = np.unique(
                [_CODES[form.name] for form in self.forms], return_index=True, return_inverse=True
            )
            examples = map(str, self._simplified(name, first[np.newaxis]))
            gain = np.array([len(text) for text in examples]) - length[first]
            return np.asarray((length + gain[which])[forms[0]])
        total = len(name) + 1 + len(forms) + length[forms].sum(axis=0)
        special = np.isin(forms, [self._form(ZERO), self._form(ONE)]).any(axis=0)
        for position, operand in enumerate(forms):
            special |= (forms[:position] == operand).any(axis=0)
        if special.any():
            tuples, inverse = _distinct(forms[:, special])
            texts = map(str, self._simplified(name, tuples))
            total[special] = np.array([len(text) for text in texts])[inverse]
        return np.asarray(total)
