"""Hypothesis strategies that several test files share."""

from __future__ import annotations

import numpy as np
from hypothesis import strategies as st

from bo_act.activations.expressions import Expression, X
from bo_act.activations.operators import OPERATORS, of_kind
from bo_act.search.embedding.embedding import Embedding
from bo_act.specs import SpaceSpec

UNARY, BINARY, NARY = of_kind("unary"), of_kind("binary"), of_kind("nary")


def expressions(*, max_arguments: int = 4, max_leaves: int = 6) -> st.SearchStrategy[Expression]:
    """Random trees over the whole operator table."""

    def grow(inner: st.SearchStrategy[Expression]) -> st.SearchStrategy[Expression]:
        def node(names: tuple[str, ...], low: int, high: int) -> st.SearchStrategy[Expression]:
            arguments = st.lists(inner, min_size=low, max_size=high).map(tuple)
            return st.builds(Expression, st.sampled_from(names), arguments)

        return node(UNARY, 1, 1) | node(BINARY, 2, 2) | node(NARY, 2, max_arguments)

    return st.recursive(st.just(X), grow, max_leaves=max_leaves)


def shuffled(expression: Expression) -> st.SearchStrategy[Expression]:
    """The same tree with the arguments of commutative operators in another order."""
    if not expression.arguments:
        return st.just(expression)
    arguments = st.tuples(*map(shuffled, expression.arguments))
    if OPERATORS[expression.name].commutative:
        arguments = arguments.flatmap(lambda some: st.permutations(some).map(tuple))
    return st.builds(Expression, st.just(expression.name), arguments)


SCHEMAS = (
    "unary(x)",
    "unary(unary(x))",
    "binary(unary(x),unary(x))",
    "binary(unary(x),x)",
    "unary(binary(unary(x),unary(x)))",
    "binary(unary(unary(x)),unary(x))",
    "binary(x,binary(unary(x),x))",
    "nary(unary(x),unary(x),unary(x))",
    "nary(x,binary(x,unary(x)),unary(x),unary(x))",
    "mul(x,unary(x))",
    "relu(unary(binary(x,unary(x))))",
    "tanh(x)",
    "x",
)


@st.composite
def space_specs(draw) -> SpaceSpec:
    """Small spaces of several schemas with up to three operators a kind."""

    def some(names: tuple[str, ...], low: int = 0, high: int = 3) -> tuple[str, ...]:
        return tuple(
            draw(st.lists(st.sampled_from(names), min_size=low, max_size=high, unique=True))
        )

    schemas = some(SCHEMAS, high=4)
    texts = map(str, some_distinct(draw, 0 if schemas else 1))
    return SpaceSpec(
        name="random",
        unary=some(UNARY, 1),
        binary=some(BINARY, 1),
        nary=some(NARY, 1),
        schemas=schemas,
        expressions=tuple(texts),
    )


def some_distinct(draw, low: int) -> list[Expression]:
    return draw(st.lists(expressions(max_leaves=3), min_size=low, max_size=3, unique=True))


@st.composite
def embeddings(draw, *, low: int = 4, high: int = 12) -> Embedding:
    """Random points in one or two blocks, some rows without a place."""
    rows = draw(st.integers(low, high))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    points = rng.uniform(size=(rows, 3))
    valid = np.array(draw(st.lists(st.booleans(), min_size=rows, max_size=rows)))
    points[~valid] = np.nan
    blocks = draw(
        st.sampled_from([{"outputs": slice(0, 3)}, {"outputs": slice(0, 2), "fim": slice(2, 3)}])
    )
    return Embedding(points, blocks, valid)
