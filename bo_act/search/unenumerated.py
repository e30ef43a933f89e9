"""Local search over expression trees, in spaces that are too large to list.

A sample of the space takes the catalogue's place: the embedding is learnt from it, and a search
starts in it. Each proposal then climbs: the trees that score best, and those observed to be best,
have an operator changed or take another shape, their children are placed in the same embedding
and scored, and the best of all go on.
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
_REPRESENTATIVES = 1_024  # of them, that stand for all candidates
_BEAM = 8  # trees expanded in each round
_CHILDREN = 48  # of each of them
_ROUNDS = 12
_PATIENCE = 2  # rounds without a better one


class ExpressionPool:
    """The functions of a space that were met so far; grows.

    In place of a ``Catalogue`` where a space cannot be listed. Indices are in the order in which
    functions were met, first those of the sample, which follows from the space alone.

    Args:
        space: any.
        components: of the output features, in the embedding.
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
        # Of equal functions one, as in a catalogue: the ranks are among functions.
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
        """Whether every expression of the space was met."""
        return len(self._of_number) == len(self.space)

    @cached_property
    def hash(self) -> str:
        """Identify the space and the sample."""
        return hashlib.sha256(f"{self.space.hash}:{_SAMPLE}".encode()).hexdigest()

    @property
    def embedding(self) -> Embedding:
        """The functions met, in the embedding learnt from the sample."""
        frame = self._learnt()
        nowhere = np.full(frame.known.shape[1], np.nan)
        points = np.array([nowhere if point is None else point for point in self._points])
        valid = np.array([point is not None for point in self._points])
        made_from = {"embedder": "outputs of a sample", "catalogue": self.hash}
        return Embedding(points, {"outputs": slice(0, points.shape[1])}, valid, made_from)

    def expression(self, index: int) -> Expression:
        """Return the spelling by which a function was met first, in canonical form."""
        return canonical(self._expressions[index])

    def text(self, index: int) -> str:
        """Return the text of that spelling."""
        return str(self.expression(index))

    def number(self, index: int) -> int | None:
        """Return the number of that spelling in the space; None of one that is in no schema."""
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
        """Return the index of a function, which is met now if it was not before.

        Raises:
            ExpressionError: no expression, or parameters of no member of the space, or of one that
                does not satisfy what the space requires.
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
        """Meet functions; return their indices."""
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
                if self._numbers[index] is None:  # met by its text before
                    self._numbers[index] = number
        return [self._of_key[key] for key in keys]

    def keys(self, expressions: Iterable[Expression]) -> list[int]:
        """Return what identifies each function: its values on the space's domain."""
        domain = self.space.spec.domain
        x = grid(domain)
        values = [evaluate(expression, x).expand_as(x) for expression in expressions]
        if not values:
            return []
        keys, _ = fingerprints(torch.stack(values), domain)
        return [int(key) for key in keys]

    def key(self, index: int) -> int:
        """Return what identifies a function that was met."""
        return self._keys[index]

    def place(self, expressions: Sequence[Expression]) -> list[NDArray[np.float64] | None]:
        """Return where functions lie, (d,) each.

        None of those that have no output features, or that are not what the space requires.
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
        """Tell which functions satisfy what the space requires."""
        spec = self.space.spec
        masks = satisfied(_Listed(expressions), spec.domain, spec.require)
        everything = np.ones(len(expressions), dtype=bool)
        fit: NDArray[np.bool_] = np.logical_and.reduce([everything, *masks.values()])
        return fit

    def _learnt(self) -> RankPca:
        if self._frame is None:
            raise SearchError("the embedding has not been fitted yet")
        return self._frame


class TreeClimb:
    """Maximizing the acquisition function over all trees of a space, met or not.

    Args:
        scoring: what is maximized.
        pool: the functions met.
        taken: indices of functions that are not to be proposed.
        generator: of what is drawn.
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
        """Return the best tree found, met from now on, and its score.

        Args:
            embedding: of the functions met before.
            observations: n values.
            candidates: indices of functions met that may be proposed.
        """
        with single_threaded():
            self.score = self.scoring.scorer(
                torch.from_numpy(embedding.points[candidates[:_REPRESENTATIVES]]),
                seed=int(self.generator.integers(2**31)),
            )
            with torch.no_grad():
                return self._climbed(embedding, observations, candidates)

    def _climbed(
        self, embedding: Embedding, observations: Observations, candidates: NDArray[np.int64]
    ) -> tuple[int, float]:
        pool = self.pool
        scores = self.score(torch.from_numpy(embedding.points[candidates])).numpy()
        order = np.argsort(-scores, kind="stable")[:_BEAM]
        # number → score; observed trees have children, but are none to propose.
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
        """Score trees that are neither taken nor another spelling of one scored before."""
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
    """Expressions by place, as ``output_blocks`` takes them."""

    def __init__(self, expressions: Sequence[Expression]) -> None:
        self.expressions = expressions

    def __len__(self) -> int:
        return len(self.expressions)

    def expression(self, index: int) -> Expression:
        return self.expressions[index]


def neighbours(space: Space, number: int, generator: np.random.Generator) -> list[int]:
    """Return the numbers of trees that are one change away.

    Another operator in one slot; or another shape, in which slots of the same place keep their
    operators and the others draw theirs.

    Args:
        space: of the tree.
        number: of the tree.
        generator: of what is drawn.
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
    """Return numbers of trees, each shape as often, and all named functions."""
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
