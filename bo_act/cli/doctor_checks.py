"""Checks of an environment, with advice on missing things."""

from __future__ import annotations

import os
import platform
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from bo_act import content
from bo_act.dependencies.extras import EXTRAS, has_extra
from bo_act.errors import BoActError, DataError
from bo_act.io import one_line, reason

if TYPE_CHECKING:
    from bo_act.data.loading import Data
    from bo_act.data.samples import Samples

Level = Literal["ok", "warning", "problem"]

_LEAST_FREE = 2e9  # bytes; features and trials of a large study
_READING = 60.0  # seconds for reading images in folders: about 10,000 of ImageNet's
_SHOWN = 5  # damaged images listed


@dataclass(frozen=True)
class Finding:
    """The result of one check.

    Attributes:
        level: ok, warning or problem.
        what: the subject of the check.
        found: its state.
        advice: what to do, if anything.
    """

    level: Level
    what: str
    found: str
    advice: str = ""

    def as_json(self) -> dict[str, str]:
        """Return the finding as ``--json`` prints it."""
        return asdict(self)


def examine(study: str | None = None) -> list[Finding]:
    """Check the environment, and the needs of a study if one is given."""
    checks = {
        "versions": _versions(),
        "devices": _devices(),
        "folders": _folders(),
        "extras": _extras(),
        **({f"study {study}": _study(study)} if study else {}),
    }
    return [finding for what, check in checks.items() for finding in _each(what, check)]


def _each(what: str, check: Iterator[Finding]) -> Iterator[Finding]:
    """Yield the findings of a check; a check that fails is itself a finding."""
    try:
        yield from check
    except BoActError as error:
        yield Finding("problem", what, str(error))
    except Exception as error:  # an environment can be wrong in any way
        yield Finding("problem", what, f"check failed: {one_line(error)}")


def _versions() -> Iterator[Finding]:
    yield Finding("ok", "Python", f"{platform.python_version()} on {platform.platform()}")
    for package in ("bo-act", "torch", "botorch", "gpytorch", "optuna", "numpy"):
        try:
            yield Finding("ok", package, version(package))
        except PackageNotFoundError:
            yield Finding("problem", package, "not installed", f"pip install {package}")


def _devices() -> Iterator[Finding]:
    import torch

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    yield Finding("ok", "CPU", f"cores: {cores}; torch threads: {torch.get_num_threads()}")
    if not torch.cuda.is_available():
        built = torch.version.cuda
        why = f"torch is built for CUDA {built} but finds no device" if built else "torch has none"
        advice = "training runs on the CPU; to use a GPU, check its driver (nvidia-smi)"
        yield Finding("warning", "GPU", f"none: {why}", advice)
        return
    for index in range(torch.cuda.device_count()):
        free, total = torch.cuda.mem_get_info(index)
        name = torch.cuda.get_device_name(index)
        yield Finding(
            "ok", f"GPU {index}", f"{name}, {free / 1e9:.3g} of {total / 1e9:.3g} GB free"
        )


def _folders() -> Iterator[Finding]:
    yield from _each("cache", _cache())
    yield from _each("working folder (runs/)", _working_folder())
    yield from _each("temporary files", _temporary_files())
    for kind in ("spaces", "models", "studies"):
        known = content.names(kind)
        level: Level = "ok" if known else "problem"
        advice = "" if known else "reinstall bo-act: its own files are missing"
        yield Finding(level, kind, f"{len(known)} by name", advice)


def _cache() -> Iterator[Finding]:
    cache = content.cache_dir()
    finding = _folder("cache", cache, content.MOVE_CACHE)
    if finding.level == "ok" and not (os.environ.get("BO_ACT_CACHE_DIR") or content.has_home()):
        why = f"{finding.found}; among temporary files, because there is no home folder"
        finding = Finding("warning", "cache", why, "set BO_ACT_CACHE_DIR to a permanent folder")
    yield finding
    if cache.is_dir() and os.access(cache, os.R_OK | os.X_OK):
        for part in sorted(path for path in cache.iterdir() if path.is_dir()):
            size = 0
            for file in part.rglob("*"):
                with suppress(OSError):  # deleted meanwhile
                    size += file.stat().st_size if file.is_file() else 0
            yield Finding("ok", f"cache of {part.name}", f"{size / 1e6:.3g} MB in {part}")


def _working_folder() -> Iterator[Finding]:
    what = "working folder (runs/)"
    try:
        runs = Path.cwd() / "runs"
    except FileNotFoundError:
        yield Finding("problem", what, "was removed", "change to one that exists")
        return
    if runs.exists() and not runs.is_dir():
        yield Finding(
            "problem", what, f"{runs} is not a folder", "move it: bo-act saves runs there"
        )
        return
    yield _folder(what, runs if runs.is_dir() else Path.cwd(), "change to another folder")


def _temporary_files() -> Iterator[Finding]:
    try:
        yield _folder(
            "temporary files", Path(tempfile.gettempdir()), "set TMPDIR to another folder"
        )
    except OSError as error:
        yield Finding("problem", "temporary files", reason(error))


def _folder(what: str, path: Path, advice: str) -> Finding:
    existing = next(folder for folder in (path, *path.parents) if folder.exists())
    if not os.access(existing, os.W_OK | os.X_OK) or not existing.is_dir():
        return Finding("problem", what, f"{path} cannot be written to", advice)
    free = shutil.disk_usage(existing).free
    if free < _LEAST_FREE:
        return Finding(
            "warning", what, f"{path}, {free / 1e9:.3g} GB free", f"make room, or {advice}"
        )
    return Finding("ok", what, f"{path}, {free / 1e9:.3g} GB free")


def _extras() -> Iterator[Finding]:
    for extra in EXTRAS:
        if has_extra(extra):
            yield Finding("ok", f"extra {extra}", "installed")
        else:
            how = f"pip install 'bo-act[{extra}]' if you need it"
            yield Finding("ok", f"extra {extra}", "not installed", how)


def _study(name: str) -> Iterator[Finding]:
    from bo_act.specs.files import read_study

    try:
        spec = read_study(name)
    except BoActError as error:
        yield Finding("problem", f"study {name}", "cannot be read", str(error))
        return
    yield Finding("ok", f"study {spec.name}", f"{spec.trials} trials")
    yield from _storage(spec)
    yield from _data(spec)


def _storage(spec: Any) -> Iterator[Finding]:
    from bo_act.study.storage.opening import file_of, open_storage, where_of

    try:
        where = where_of(spec)
        file = file_of(where)
        if file is not None and not file.is_file():
            yield _folder("storage", file.parent, "give another --storage")
            return
        count = len(open_storage(where, create=False).get_all_studies())
    except BoActError as error:
        yield Finding("problem", "storage", "cannot be opened", str(error))
        return
    yield Finding("ok", "storage", f"reachable; studies: {count}")


def _data(spec: Any) -> Iterator[Finding]:
    from bo_act.tasks.task import Task

    what = "data, space and network"
    downloads = spec.data is not None and spec.data.download
    here = spec
    if downloads:
        here = spec.model_copy(update={"data": spec.data.model_copy(update={"download": False})})
    try:
        task = Task.load(here)
    except DataError as error:
        level: Level = "warning" if downloads else "problem"
        then = "; `bo-act run` tries to download them" if downloads else ""
        yield Finding(level, what, "no data", f"{error}{then}")
        return
    except BoActError as error:
        yield Finding("problem", what, "cannot be loaded", str(error))
        return
    names = [part.name for part in (spec.data, spec.model) if part is not None]
    yield Finding("ok", what, f"{', '.join(names) or 'the space and the objective'} load")
    if task.given_data is not None:
        yield from _images(task.given_data)


def _images(data: Data) -> Iterator[Finding]:
    """Read the images in folders, up to a time limit; those in memory are read already."""
    from bo_act.data.folders import FolderImages, damaged

    sets: list[Samples] = [data.train, data.validation]
    try:
        sets.append(data.load_test())
    except BoActError as error:
        yield Finding("problem", "test images", "cannot be loaded", str(error))
    paths = [path for images in sets if isinstance(images, FolderImages) for path in images.paths]
    if not paths:
        return
    bad, count = damaged(paths, seconds=_READING)
    read = f"{count:,} of {len(paths):,} read"
    if not bad:
        yield Finding("ok", "images", read)
        return
    more = f"; and {len(bad) - _SHOWN} more" if len(bad) > _SHOWN else ""
    advice = "; ".join(bad[:_SHOWN]) + more
    yield Finding("problem", "images", f"{read}, {len(bad)} damaged", advice)
