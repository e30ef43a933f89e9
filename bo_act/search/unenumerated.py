"""Local search over expression trees, in spaces that are too large to list.

A sample of the space replaces the catalogue: the embedding is learnt from it, and a search starts
in it. Each proposal is a beam search. The trees with the best scores, and the best observed ones,
get children with one changed operator or another schema; the children are embedded and scored, and
the best trees of all are the next beam.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterable, Mapping, Sequence
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray

from bo_act.activations.evaluation import evaluate
from bo_act.activations.expressions import Expression, canonical, parse
from bo_act.dependencies.torch_state import single_threaded
from bo_act.errors import ExpressionError, SearchError
from bo_act.features.outputs import output_blocks
from bo_act.features.rank_pca import RankPca, output_frame, place_outputs
from bo_act.search.acquisition.pool import Scoring
from bo_act.search.embedding.embedding import Embedding
from bo_act.search.observations import Observations
from bo_act.spaces.deduplication import fingerprints, grid
from bo_act.spaces.enumeration import SCHEMA_SLOT
from bo_act.spaces.smoothness import left_out, satisfied
from bo_act.spaces.space import Space

_SAMPLE = 4_096  # trees that the embedding is learnt from
_REPRESENTATIVES = 1_024  # of these trees, to represent all candidates
_BEAM = 8  # trees expanded in each round
_CHILDREN = 48  # of each of these
_ROUNDS = 12
_PATIENCE = 2  # rounds without a better tree


class ExpressionPool:
    """A growing pool of functions, in place of the ``Catalogue`` of a space too large to list.

    Indices are in the order of addition, the sample first; the sample depends only on the space.

    Args:
        space: any.
        components: of the output features in the embedding.
    """

    def __init__(self, space: Space, *, components: int = 6) -> None:
        self.space = space
        self._expressions: list[Expression] = []
        self._numbers: list[int | None] = []
        self._of_key: dict[int, int] = {}
        self._of_number: dict[int, int] = {}
        self._keys: list[int] = []
        self._points: list[NDArray[np.float64] | None] = []
        self._frame: RankPca | None = None
        with single_threaded():
            self._learn(components)

    def _learn(self, components: int) -> None:
        space = self.space
        sample = _sample(space)
        fit = self._fit([space.expression(number) for number in sample])
        sample = [number for number, good in zip(sample, fit, strict=True) if good]
        if not sample:
            raise SearchError(
                f"no function of a sample of the space {space.name!r} satisfies what it requires "
                f"({', '.join(space.spec.require)}); require less"
            )
        expressions = [space.expression(number) for number in sample]
        # Each function once, as in a catalogue: ranks are among functions.
        once = dict(zip(self.keys(expressions)[::-1], expressions[::-1], strict=True))
        functions = _Listed(list(once.values()))
        blocks = output_blocks(functions)
        present = np.flatnonzero(blocks["outputs"].present)
        if not len(present):
            raise SearchError(
                f"no function of a sample of the space {space.name!r} has output features, so "
                "there is nothing to embed"
            )
        self._frame = output_frame(blocks, present, components)
        self.add(expressions, sample)

    def __len__(self) -> int:
        return len(self._expressions)

    @property
    def is_complete(self) -> bool:
        """Whether it has every expression of the space."""
        return len(self._of_number) == len(self.space)

    @cached_property
    def hash(self) -> str:
        """Identify the space and the sample."""
        return hashlib.sha256(f"{self.space.hash}:{_SAMPLE}".encode()).hexdigest()

    @property
    def embedding(self) -> Embedding:
        """The functions of the pool in the embedding learnt from the sample."""
        frame = self._learnt()
        nowhere = np.full(frame.known.shape[1], np.nan)
        points = np.array([nowhere if point is None else point for point in self._points])
        valid = np.array([point is not None for point in self._points])
        made_from = {"embedder": "outputs of a sample", "catalogue": self.hash}
        return Embedding(points, {"outputs": slice(0, points.shape[1])}, valid, made_from)

    def expression(self, index: int) -> Expression:
        """Return the first added spelling of a function, in canonical form."""
        return canonical(self._expressions[index])

    def text(self, index: int) -> str:
        """Return the text of that spelling."""
        return str(self.expression(index))

    def number(self, index: int) -> int | None:
        """Return the number of that spelling in the space; None if no schema has it."""
        return self._numbers[index]

    def params(self, index: int) -> dict[str, str]:
        """Return the Optuna parameters of a function."""
        number = self._numbers[index]
        if number is None:
            raise ExpressionError(
                f"{self.text(index)} is not in the space {self.space.name!r}: no schema can "
                "express it; add it to the file's expressions"
            )
        return self.space.params(number)

    def index(self, function: str | Expression | Mapping[str, object]) -> int:
        """Return the index of a function, adding it if necessary.

        Raises:
            ExpressionError: not an expression, not in the space, or without a required property.
        """
        number = None
        if isinstance(function, Mapping):
            number = self.space.number(function)
            if number in self._of_number:
                return self._of_number[number]
            expression = self.space.expression(number)
        else:
            expression = parse(function) if isinstance(function, str) else function
            number = self.space.find(expression)
        if not self._fit([expression])[0]:
            raise left_out(expression, self.space.spec)
        return self.add([expression], [number])[0]

    def add(self, expressions: Sequence[Expression], numbers: Sequence[int | None]) -> list[int]:
        """Add functions; return their indices."""
        keys = self.keys(expressions)
        fresh = [
            position
            for position, key in enumerate(keys)
            if key not in self._of_key and key not in keys[:position]
        ]
        points = self.place([expressions[position] for position in fresh])
        for position, point in zip(fresh, points, strict=True):
            self._of_key[keys[position]] = len(self._expressions)
            self._expressions.append(expressions[position])
            self._numbers.append(numbers[position])
            self._keys.append(keys[position])
            self._points.append(point)
        for key, number in zip(keys, numbers, strict=True):
            index = self._of_key[key]
            if number is not None:
                self._of_number[number] = index
                if self._numbers[index] is None:  # added by its text before
                    self._numbers[index] = number
        return [self._of_key[key] for key in keys]

    def keys(self, expressions: Iterable[Expression]) -> list[int]:
        """Return the keys of functions: hashes of their values on the space's domain."""
        domain = self.space.spec.domain
        x = grid(domain)
        values = [evaluate(expression, x).expand_as(x) for expression in expressions]
        if not values:
            return []
        keys, _ = fingerprints(torch.stack(values), domain)
        return [int(key) for key in keys]

    def key(self, index: int) -> int:
        """Return the key of a function of the pool."""
        return self._keys[index]

    def place(self, expressions: Sequence[Expression]) -> list[NDArray[np.float64] | None]:
        """Return the points of functions, (d,) each.

        A function without output features, or without a required property, has None.
        """
        if not expressions:
            return []
        blocks = output_blocks(_Listed(expressions))
        present = np.flatnonzero(blocks["outputs"].present)
        placed: list[NDArray[np.float64] | None] = [None] * len(expressions)
        fit = self._fit([expressions[row] for row in present.tolist()])
        present = present[fit]
        if len(present):
            points = place_outputs(self._learnt(), blocks, present)
            for row, point in zip(present, points, strict=True):
                placed[row] = point
        return placed

    def _fit(self, expressions: Sequence[Expression]) -> NDArray[np.bool_]:
        """Tell which functions have the properties that the space requires."""
        spec = self.space.spec
        masks = satisfied(_Listed(expressions), spec.domain, spec.require)
        everything = np.ones(len(expressions), dtype=bool)
        fit: NDArray[np.bool_] = np.logical_and.reduce([everything, *masks.values()])
        return fit

    def _learnt(self) -> RankPca:
        if self._frame is None:
            raise SearchError("the embedding has not been fitted yet")
        return self._frame


class TreeSearch:
    """Maximizes the acquisition function over all trees of a space, in the pool or not.

    Args:
        scoring: scores of functions.
        pool: functions so far.
        taken: indices of functions that may not be proposed.
        generator: of random draws.
    """

    def __init__(
        self,
        scoring: Scoring,
        pool: ExpressionPool,
        *,
        taken: Collection[int],
        generator: np.random.Generator,
    ) -> None:
        self.scoring, self.pool = scoring, pool
        self.taken = {pool.key(index) for index in taken}
        self.generator = generator

    def best(
        self,
        embedding: Embedding,
        observations: Observations,
        candidates: NDArray[np.int64],
    ) -> tuple[int, float]:
        """Return the index of the best tree, added to the pool, and its score.

        Args:
            embedding: of the functions in the pool.
            observations: n values.
            candidates: indices of functions in the pool that may be proposed.
        """
        with single_threaded():
            self.score = self.scoring.scorer(
                torch.from_numpy(embedding.points[candidates[:_REPRESENTATIVES]]),
                seed=int(self.generator.integers(2**31)),
            )
            with torch.no_grad():
                return self._beam_search(embedding, observations, candidates)

    def _beam_search(
        self, embedding: Embedding, observations: Observations, candidates: NDArray[np.int64]
    ) -> tuple[int, float]:
        pool = self.pool
        scores = self.score(torch.from_numpy(embedding.points[candidates])).numpy()
        order = np.argsort(-scores, kind="stable")[:_BEAM]
        # number → score; observed trees get children, but are not proposed.
        beam: dict[int, float] = {}
        for position in order:
            if (number := pool.number(int(candidates[position]))) is not None:
                beam[number] = float(scores[position])
        observed = np.argsort(-observations.merits, kind="stable")[: _BEAM // 2]
        parents = [
            number
            for index in observations.indices[observed]
            if (number := pool.number(int(index))) is not None
        ]
        best, best_score = int(candidates[order[0]]), float(scores[order[0]])
        best_number: int | None = None
        seen = set(beam) | set(parents)
        keys = set(self.taken)
        idle = 0
        for _ in range(_ROUNDS):
            children = self._children([*beam, *parents], seen)
            parents = []
            scored = self._scored(children, keys)
            if scored and max(scored.values()) > best_score:
                best_number = max(scored, key=lambda number: (scored[number], -number))
                best_score, idle = scored[best_number], 0
            else:
                idle += 1
            if idle == _PATIENCE:
                break
            ranked = sorted((beam | scored).items(), key=lambda item: (-item[1], item[0]))
            beam = dict(ranked[:_BEAM])
        if best_number is not None:
            best = pool.add([pool.space.expression(best_number)], [best_number])[0]
        return best, best_score

    def _children(self, parents: Sequence[int], seen: set[int]) -> list[int]:
        children: list[int] = []
        for parent in parents:
            around = [n for n in neighbours(self.pool.space, parent, self.generator)
                      if n not in seen]  # fmt: skip
            if len(around) > _CHILDREN:
                chosen = self.generator.choice(len(around), size=_CHILDREN, replace=False)
                around = [around[position] for position in sorted(chosen)]
            seen.update(around)
            children += around
        return children

    def _scored(self, numbers: Sequence[int], keys: set[int]) -> dict[int, float]:
        """Score new functions; skip taken ones and other spellings of scored ones."""
        pool = self.pool
        expressions = [pool.space.expression(number) for number in numbers]
        placed = [
            (number, expression, point)
            for number, expression, point in zip(
                numbers, expressions, pool.place(expressions), strict=True
            )
            if point is not None
        ]
        if not placed:
            return {}
        fresh = []
        for child, key in zip(placed, pool.keys(e for _, e, _ in placed), strict=True):
            if key not in keys:
                keys.add(key)
                fresh.append(child)
        if not fresh:
            return {}
        points = torch.from_numpy(np.stack([point for _, _, point in fresh]))
        scores = self.score(points).tolist()
        return {number: score for (number, _, _), score in zip(fresh, scores, strict=True)}


class _Listed:
    """Expressions by index, for ``output_blocks``."""

    def __init__(self, expressions: Sequence[Expression]) -> None:
        self.expressions = expressions

    def __len__(self) -> int:
        return len(self.expressions)

    def expression(self, index: int) -> Expression:
        return self.expressions[index]


def neighbours(space: Space, number: int, generator: np.random.Generator) -> list[int]:
    """Return the numbers of the trees with one change.

    The change is another operator in one slot, or another schema: slots of the same name keep their
    operators, and the others draw theirs.

    Args:
        space: of the tree.
        number: of the tree.
        generator: of random draws.
    """
    params = space.params(number)
    numbers = []
    for slot, chosen in params.items():
        if slot == SCHEMA_SLOT:
            continue
        for other in space.distributions[slot].choices:
            if other != chosen:
                numbers.append(space.number({**params, slot: other}))
    for schema in space.schema_choices:
        if len(space.schema_choices) > 1 and schema != params[SCHEMA_SLOT]:
            numbers.append(space.number(_in_schema(space, schema, params, generator)))
    return numbers


def _in_schema(
    space: Space, schema: str, params: Mapping[str, str], generator: np.random.Generator
) -> dict[str, str]:
    filled = {SCHEMA_SLOT: schema}
    for name in space.slots_of_schema(schema):
        choices = space.distributions[name].choices
        filled[name] = params.get(name) or str(choices[generator.integers(len(choices))])
    return filled


def _sample(space: Space) -> list[int]:
    """Return the numbers of a sample of trees, as many per schema, and of all named functions."""
    generator = np.random.default_rng(0)
    numbers = [len(space) - 1 - position for position in range(len(space.named_expressions))][::-1]
    start = 0
    per_schema = -(-_SAMPLE // max(len(space.schemas), 1))
    for schema in space.schemas:
        if len(schema) <= per_schema:
            numbers += range(start, start + len(schema))
        else:
            numbers += (start + generator.integers(len(schema), size=per_schema)).tolist()
        start += len(schema)
    return list(dict.fromkeys(int(number) for number in numbers))
