"""The feature store: shards, manifest, damage, and many processes at once."""

from __future__ import annotations

import errno
import json
import os
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bo_act.errors import FeatureError
from bo_act.features import store as storing
from bo_act.features.store import FeatureStore, Shard


def shard(*indices: int, seed: int = 0, **about) -> Shard:
    """Rows that follow from their index; every seventh function has none."""
    rows = len(indices)
    quantiles = np.full((rows, 16), np.nan, dtype=np.float32)
    null_mass = np.full((rows, 2), np.nan, dtype=np.float32)
    reasons = [""] * rows
    for place, index in enumerate(indices):
        if index % 7 == 3:
            reasons[place] = "because, é"
            continue
        rng = np.random.default_rng([seed, index])
        quantiles[place] = np.sort(rng.normal(size=16))
        null_mass[place] = rng.uniform(size=2)
    return Shard(np.array(indices, dtype=np.int64), quantiles, null_mass, tuple(reasons), **about)


def contents(store: FeatureStore) -> dict[int, tuple[bytes, bytes, str]]:
    """The first row of each function."""
    found: dict[int, tuple[bytes, bytes, str]] = {}
    for one in store.shards():
        assert one.quantiles.dtype == one.null_mass.dtype == np.float32
        for row, index in enumerate(one.indices.tolist()):
            value = (one.quantiles[row].tobytes(), one.null_mass[row].tobytes(), one.reasons[row])
            found.setdefault(index, value)
    return found


def expected(*indices: int, seed: int = 0) -> dict[int, tuple[bytes, bytes, str]]:
    one = shard(*indices, seed=seed)
    return {
        index: (one.quantiles[row].tobytes(), one.null_mass[row].tobytes(), one.reasons[row])
        for row, index in enumerate(indices)
    }


def missing(store: FeatureStore, *wanted: int) -> list[int]:
    return store.state(np.array(wanted, dtype=np.int64)).missing.tolist()


@pytest.fixture
def store(tmp_path) -> FeatureStore:
    return FeatureStore({"a": 1}, root=tmp_path)


def files(store: FeatureStore) -> list[Path]:
    """The shards, in the order in which they were added."""
    lines = (store.folder / "manifest.jsonl").read_text().splitlines()
    return [store.folder / json.loads(line)["file"] for line in lines]


# --- keeping and reading --------------------------------------------------------------------


def test_shards_come_back(store, tmp_path):
    assert list(store.shards()) == []
    assert missing(store, 0, 1, 9) == [0, 1, 9]
    store.add(shard(0, 1, 3))
    store.add(shard(9))
    for same in (store, FeatureStore({"a": 1}, root=tmp_path)):
        assert contents(same) == expected(0, 1, 3, 9)
        assert missing(same, 0, 1, 2, 9, 10) == [2, 10]
        assert same.size == sum(path.stat().st_size for path in same.folder.glob("*.parquet"))
    assert not list(tmp_path.glob("**/.*"))  # no temporary file is left


def test_another_key_shares_nothing(tmp_path):
    FeatureStore({"a": 1, "b": [2]}, root=tmp_path).add(shard(0))
    assert contents(FeatureStore({"b": [2], "a": 1}, root=tmp_path)) == expected(0)
    for key in ({"a": 1}, {"a": 2, "b": [2]}, {"a": 1, "b": [2], "c": None}):
        assert contents(FeatureStore(key, root=tmp_path)) == {}


def test_the_store_is_in_the_cache_folder_and_says_its_key(tmp_path):
    store = FeatureStore({"a": 1})
    assert store.folder.parent == tmp_path / "cache" / "features"
    assert json.loads((store.folder / "key.json").read_text()) == {"a": 1}


def test_the_manifest_says_what_is_where(store):
    store.add(shard(4, 2, device="an abacus", seconds=1.23456))
    (line,) = (store.folder / "manifest.jsonl").read_text().splitlines()
    said = json.loads(line)
    assert said["functions"] == [4, 2]
    assert (said["device"], said["seconds"]) == ("an abacus", 1.235)
    assert said["bytes"] == (store.folder / said["file"]).stat().st_size


def test_content_does_not_depend_on_who_computed_it_and_how_long(store, tmp_path):
    other = FeatureStore({"b": 1}, root=tmp_path)
    store.add(shard(0, 1, device="cpu", seconds=1.0))
    other.add(shard(0, 1, device="gpu", seconds=2.0))
    assert files(store)[0].name == files(other)[0].name
    assert files(store)[0].read_bytes() == files(other)[0].read_bytes()


def test_the_first_row_of_a_function_holds(store):
    store.add(shard(0, 1, seed=0))
    store.add(shard(1, 2, seed=1))
    store.add(shard(0, 1, seed=0))  # what another process computed just the same
    assert contents(store) == expected(0, 1) | expected(2, seed=1)


@settings(max_examples=40)  # each writes up to six files
@given(parts=st.lists(st.sets(st.integers(0, 30), min_size=1), max_size=6), order=st.randoms())
def test_the_union_does_not_depend_on_the_parts_or_their_order(tmp_path_factory, parts, order):
    root = tmp_path_factory.mktemp("store")
    store = FeatureStore({}, root=root)
    order.shuffle(parts)
    for part in parts:
        store.add(shard(*sorted(part)))
    everything = set().union(*parts)
    assert contents(store) == expected(*everything)
    assert missing(store, *range(31)) == sorted(set(range(31)) - everything)


# --- damage ---------------------------------------------------------------------------------


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-20])


def alter(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(bytes(content))


@pytest.mark.parametrize(
    ("damage", "says"),
    [(truncate, "bytes instead of"), (alter, "altered"), (Path.unlink, "gone")],
)
def test_a_damaged_shard_is_told_and_not_taken(store, damage, says):
    for indices in ((0, 1), (2, 3), (4, 5)):
        store.add(shard(*indices))
    path = files(store)[1]
    damage(path)
    state = store.state(np.arange(8))
    assert state.missing.tolist() == [2, 3, 6, 7]
    assert state.lost.tolist() == [2, 3]
    assert list(state.damaged) == [path.name]
    assert says in state.damaged[path.name]
    assert contents(store) == expected(0, 1, 4, 5)
    store.add(shard(2, 3))
    state = store.state(np.arange(6))
    assert (state.missing.size, state.damaged) == (0, {})
    assert contents(store) == expected(0, 1, 2, 3, 4, 5)


def test_damage_that_nobody_asks_about_or_that_is_made_up_for_is_not_told(store):
    store.add(shard(0, 1))
    store.add(shard(2, 3))
    alter(files(store)[0])
    assert store.state(np.array([2, 3])).damaged == {}
    store.add(shard(0, 1, 5))  # under another name
    assert store.state(np.arange(4)).damaged == {}


def test_every_flipped_byte_is_noticed(store):
    store.add(shard(0, 1, 2))
    (path,) = files(store)
    good = path.read_bytes()
    for place in range(0, len(good), 7):
        bad = bytearray(good)
        bad[place] ^= 0x10
        path.write_bytes(bytes(bad))
        assert missing(store, 0, 1, 2) == [0, 1, 2]
    path.write_bytes(good)
    assert missing(store, 0, 1, 2) == []


def test_a_manifest_cut_anywhere_never_lies(store):
    for indices in ((0, 1), (2,), (3, 4)):
        store.add(shard(*indices))
    manifest = store.folder / "manifest.jsonl"
    whole = manifest.read_bytes()
    ends = [i for i, byte in enumerate(whole) if byte == ord("\n")]
    for cut in range(0, len(whole), 5):
        manifest.write_bytes(whole[:cut])
        lines = sum(end <= cut for end in ends)
        assert missing(store, 0, 1, 2, 3, 4) == [0, 1, 2, 3, 4][[0, 2, 3, 5][lines] :]
        # What is added after a torn line is not swallowed by it.
        store.add(shard(7, 8))
        assert missing(store, 7, 8, 9) == [9]


@pytest.mark.parametrize(
    "line",
    [
        "null",
        "[]",
        "{}",
        '{"file": "../key.json", "sha256": "", "bytes": 3, "functions": [9]}',
        '{"file": 3, "sha256": "", "bytes": 3, "functions": [9]}',
        '{"file": "fim-0123456789abcdef.parquet", "sha256": "", "bytes": 3, "functions": ["x"]}',
        "\x00\x00\x00",
    ],
)
def test_a_line_that_says_nothing_is_left_aside(store, line):
    manifest = store.folder / "manifest.jsonl"
    manifest.write_text(line + "\n")
    store.add(shard(0))
    assert missing(store, 0, 9) == [9]
    assert store.state(np.array([9])).damaged == {}


def test_a_shard_without_its_line_does_not_count_and_is_no_harm(store):
    store.add(shard(0, 1))
    (store.folder / "manifest.jsonl").unlink()
    assert missing(store, 0, 1) == [0, 1]
    store.add(shard(0, 1))
    assert contents(store) == expected(0, 1)
    assert len(list(store.folder.glob("*.parquet"))) == 1


# --- disks that do not work -----------------------------------------------------------------


def test_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(FeatureError, match=r"cannot be kept.*BO_ACT_CACHE_DIR"):
        FeatureStore({}, root=tmp_path / "file")


@pytest.mark.parametrize("full_at", ["fim-", "manifest"])
def test_a_full_disk(store, monkeypatch, full_at):
    store.add(shard(0))
    if full_at == "fim-":

        def full(self, content):
            with self.open("wb") as half:
                half.write(content[:10])
            raise OSError(errno.ENOSPC, "No space left on device")

        monkeypatch.setattr(Path, "write_bytes", full)
    else:
        monkeypatch.setattr(storing.FeatureStore, "_append", lambda *_: os.write(full_fd(), b"x"))
    with pytest.raises(FeatureError, match="No space left on device; make room"):
        store.add(shard(1))
    monkeypatch.undo()
    assert missing(store, 0, 1) == [1]
    assert not list(store.folder.glob(".*"))
    store.add(shard(1))
    assert contents(store) == expected(0, 1)


def full_fd() -> int:
    return os.open("/dev/full", os.O_WRONLY)


def test_a_complete_store_can_be_read_where_nothing_can_be_written(store, tmp_path, monkeypatch):
    store.add(shard(0))

    def refused(*_):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(FeatureStore, "_write", refused)
    again = FeatureStore({"a": 1}, root=tmp_path)
    assert contents(again) == expected(0)
    with pytest.raises(FeatureError, match="Permission denied"):
        again.add(shard(1))
    with pytest.raises(FeatureError, match="Permission denied"):
        FeatureStore({"a": 2}, root=tmp_path)


# --- several processes ----------------------------------------------------------------------


def _add_many(root: Path, first: int) -> None:
    store = FeatureStore({"a": 1}, root=root)
    for start in range(0, 60, 3):  # half of it is what the others add as well
        at = start if start % 2 else start + first
        store.add(shard(at, at + 1, at + 2))


def test_processes_that_write_at_once_lose_nothing(tmp_path):
    context = get_context("fork")
    writers = [context.Process(target=_add_many, args=(tmp_path, 100 * i)) for i in range(4)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
        assert writer.exitcode == 0
    store = FeatureStore({"a": 1}, root=tmp_path)
    assert len((store.folder / "manifest.jsonl").read_text().splitlines()) == 80
    found = contents(store)
    assert found == expected(*found)
    assert len(found) == 30 + 4 * 30
