"""Catalogues of big spaces on disk."""

from __future__ import annotations

import pickle
import warnings

import numpy as np
import pytest

from bo_act.content import cache_dir
from bo_act.spaces import catalogue_cache
from bo_act.spaces.catalogue import OF_FUNCTIONS, Catalogue
from bo_act.spaces.catalogue_cache import load_catalogue
from bo_act.spaces.space import Space


@pytest.fixture
def big(tiny, monkeypatch) -> Space:
    monkeypatch.setattr(catalogue_cache, "KEPT_FROM", len(tiny))
    return tiny


def assert_same(one: Catalogue, other: Catalogue) -> None:
    for name in ("group", *OF_FUNCTIONS):
        a, b = getattr(one, name), getattr(other, name)
        np.testing.assert_array_equal(a, b)
        assert a.dtype == b.dtype
    assert one.hash == other.hash


def calls(space: Space) -> tuple[Catalogue, int]:
    """The catalogue, and how often its evaluation told of progress."""
    seen = []
    return load_catalogue(space, progress=lambda *step: seen.append(step)), len(seen)


def test_a_big_catalogue_is_built_once(big):
    first, built = calls(big)
    again, read = calls(big)
    assert built > 0
    assert read == 0
    assert_same(first, again)
    assert_same(first, Catalogue.build(big))
    assert again.index("relu(x)") == first.index("relu(x)")
    (path,) = (cache_dir() / "catalogues").iterdir()
    assert path.name.startswith(big.hash)


def test_a_small_one_is_not_kept(tiny):
    assert calls(tiny)[1] > 0
    assert not (cache_dir() / "catalogues").exists()


def test_another_space_is_another_file(big):
    load_catalogue(big)
    domain = big.spec.domain.model_copy(update={"points": 100})
    assert calls(Space(big.spec.model_copy(update={"domain": domain})))[1] > 0


@pytest.mark.parametrize("damage", ["cut", "flip", "empty", "other", "short"])
def test_a_damaged_file_is_built_again(big, damage):
    first = load_catalogue(big)
    (path,) = (cache_dir() / "catalogues").iterdir()
    content = bytearray(path.read_bytes())
    if damage == "cut":
        content = content[: len(content) // 2]
    elif damage == "flip":
        content[len(content) // 3] ^= 0xFF
    elif damage == "empty":
        content.clear()
    path.write_bytes(content)
    if damage in ("other", "short"):
        arrays = {"group": first.group, "finite": first.finite, "keys": first.keys}
        if damage == "short":
            arrays |= {name: getattr(first, name) for name in OF_FUNCTIONS}
            arrays["group"] = first.group[:-1]
        with path.open("wb") as file:
            np.savez(file, **arrays)
    with pytest.warns(UserWarning, match="cannot be read and is rebuilt"):
        again, built = calls(big)
    assert built > 0
    assert_same(first, again)
    assert calls(big)[1] == 0


def test_a_folder_that_cannot_be_written_is_no_error(big, monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("BO_ACT_CACHE_DIR", str(tmp_path / "file"))
    with pytest.warns(UserWarning, match="the catalogue cannot be saved"):
        catalogue = load_catalogue(big)
    assert_same(catalogue, Catalogue.build(big))


def test_a_catalogue_can_be_pickled(tiny):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert_same(pickle.loads(pickle.dumps(tiny.catalogue)), tiny.catalogue)
