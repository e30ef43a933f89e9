"""Finding content: spaces, models, studies and benchmarks, by name or by path.

A bare name is searched in the working directory's own folder (``./spaces``, ``./models``,
``./studies``, ``./studies/benchmarks``) first, then in bo-act's own content. Anything that looks
like a path (with a separator or the file ending) is a path.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Literal

from platformdirs import user_cache_dir

from bo_act.errors import BoActError, ContentNotFoundError, nearest
from bo_act.io import expanded

Kind = Literal["spaces", "models", "studies", "studies/benchmarks"]

SUFFIX: dict[Kind, str] = {
    "spaces": ".toml",
    "models": ".py",
    "studies": ".toml",
    "studies/benchmarks": ".parquet",
}

_ONE: dict[Kind, str] = {
    "spaces": "space",
    "models": "model",
    "studies": "study",
    "studies/benchmarks": "benchmark",
}


def shipped_folder(kind: Kind) -> Path:
    """Return the folder of bo-act's own content: in the wheel, or in the repository."""
    package = Path(__file__).resolve().parent
    installed = package / "library" / kind
    return installed if installed.is_dir() else package.parent / kind


def folders(kind: Kind) -> list[Path]:
    """Return the folders to search for a bare name, in order."""
    return [Path(kind), shipped_folder(kind)]


def names(kind: Kind) -> list[str]:
    """Return the available bare names, sorted."""
    stems = {path.stem for folder in folders(kind) for path in folder.glob("*" + SUFFIX[kind])}
    return sorted(name for name in stems if not name.startswith("_"))


def find(kind: Kind, name: str) -> Path:
    """Return the file of a space, model, study or benchmark.

    Args:
        kind: which folder to look in.
        name: a bare name (``"act_bench"``) or a path (``"my_spaces/small.toml"``).

    Raises:
        ContentNotFoundError: there is no such file.
    """
    suffix = SUFFIX[kind]
    noun = _ONE[kind]
    if name.endswith(suffix) or "/" in name or "\\" in name:
        path = expanded(name)
        if not path.is_file():
            raise ContentNotFoundError(
                f"no {noun} file {name!r} (looked in {Path.cwd()}); "
                f"give an existing path or one of the names: {', '.join(names(kind))}"
            )
        return path.resolve()
    for folder in folders(kind):
        path = folder / (name + suffix)
        if path.is_file():
            return path.resolve()
    known = names(kind)
    raise ContentNotFoundError(
        f"no {noun} named {name!r}{nearest(name, known)}; "
        f"known names: {', '.join(known) or 'none'}; or give the path of a {suffix} file"
    )


MOVE_CACHE = "set BO_ACT_CACHE_DIR to another folder"
"""What can be done about a cache folder that is of no use."""


def cache_dir() -> Path:
    """Return the folder of caches (features, data): ``$BO_ACT_CACHE_DIR`` or the platform's.

    A user without a home folder, as in many containers, has a private one among the temporary
    files.

    Raises:
        BoActError: there is neither a home folder nor a usable temporary one.
    """
    moved = os.environ.get("BO_ACT_CACHE_DIR")
    if moved:
        return expanded(moved)
    return Path(user_cache_dir("bo-act")) if has_home() else _without_home()


def has_home() -> bool:
    """Return whether the platform knows a folder for this user's caches."""
    try:
        return Path(user_cache_dir("bo-act")).is_absolute()
    except (RuntimeError, KeyError, OSError):
        return False


def _without_home() -> Path:
    try:
        folder = Path(tempfile.gettempdir(), f"bo-act-{os.getuid()}")
        folder.mkdir(mode=0o700, exist_ok=True)
        if folder.stat().st_uid == os.getuid():
            return folder
        why = f"{folder} belongs to another user"
    except OSError as error:
        why = error.strerror or str(error)
    raise BoActError(
        f"there is neither a home folder nor a temporary folder for caches: {why}; {MOVE_CACHE}"
    )
