"""The sentence of a comparison's report, in cases that few comparisons have."""

from __future__ import annotations

import pytest

from bo_act.report.comparison import _words


@pytest.mark.parametrize(
    ("beats", "said"),
    [
        ([], "No method beats another (p"),
        (["ab", "ac", "ad"], "a beats all others (p"),
        (["ab"], "a beats b (p"),
        # a beats most, and d beats a.
        (["ab", "ac", "da"], "d beats a (p"),
        (["ab", "bc", "ca"], "Each method that beats another is beaten itself (p"),
    ],
)
def test_the_winner_is_not_beaten(beats, said):
    pairs = [
        {"a": one, "b": other, "probability": 0.9 if one + other in beats else 0.1}
        | {"p_holm": 0.01 if {one + other, other + one} & set(beats) else 0.2}
        for one, other in ("ab", "ac", "ad", "bc", "bd", "cd")
    ]
    assert _words({"methods": dict.fromkeys("abcd"), "comparisons": pairs}).startswith(said)
