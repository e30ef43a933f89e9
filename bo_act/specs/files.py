"""Reading users' files.

Unknown keys are refused with the nearest known one, values are checked, and every error is one
line that names the file, the place in it, what was expected and what came.
"""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any, TypeVar, get_args

from pydantic import ValidationError

from bo_act import content
from bo_act.errors import SpecError, nearest
from bo_act.io import reason
from bo_act.specs import SpaceSpec, Spec, StudySpec
from bo_act.specs.base import shown
from bo_act.urls import without_secrets

S = TypeVar("S", bound=Spec)

_MOST_BYTES = 1 << 20


def read_space(name: str) -> SpaceSpec:
    """Read a space file by name or path.

    Raises:
        ContentNotFoundError: no such file.
        SpecError: the file is not a space.
    """
    return read_spec(content.find("spaces", name), SpaceSpec)


def read_study(name: str, overrides: dict[str, str] | None = None) -> StudySpec:
    """Read a study file by name or path.

    Args:
        name: bare name or path.
        overrides: values that replace the file's, by dotted key: ``{"training.epochs": "3"}``;
            each value is read as TOML, or as a plain string if it is not TOML.

    Raises:
        ContentNotFoundError: no such file.
        SpecError: the file is not a study.

    Examples:
        >>> read_study("quickstart").name
        'quickstart'
    """
    return read_spec(content.find("studies", name), StudySpec, overrides)


def read_spec(path: Path, form: type[S], overrides: dict[str, str] | None = None) -> S:
    """Read a file of any form; see ``read_study``."""
    content = _loaded(_text(path), f"{path}")
    for key, text in (overrides or {}).items():
        _override(content, key, text)
    try:
        return form.model_validate(content)
    except ValidationError as error:
        raise SpecError(f"{path}: {explain(error, form)}") from error


def _text(path: Path) -> str:
    """Return a file's text without a byte order mark."""
    try:
        if path.exists() and not path.is_file():
            raise SpecError(f"{path}: expected a file, got a folder, a pipe or a device")
        with path.open("rb") as file:
            content = file.read(_MOST_BYTES + 1)
        if len(content) > _MOST_BYTES:
            raise SpecError(f"{path}: expected at most {_MOST_BYTES:,} bytes, got more")
        return content.decode("utf-8-sig").replace("\r\n", "\n")
    except UnicodeDecodeError as error:
        raise SpecError(f"{path}: expected text in UTF-8: {error}; save it as UTF-8") from error
    except OSError as error:
        raise SpecError(f"{path}: cannot be read: {reason(error)}") from error


def _loaded(text: str, where: str) -> dict[str, Any]:
    try:
        return tomllib.loads(text)
    except RecursionError as error:
        raise SpecError(f"{where}: not valid TOML: it is too deeply nested") from error
    except ValueError as error:  # from integers of thousands of digits
        why = str(error).partition(";")[0]
        raise SpecError(f"{where}: not valid TOML: {why}") from error


def _override(content: dict[str, Any], key: str, text: str) -> None:
    *tables, last = key.split(".")
    inner = content
    for table in tables:
        inner = inner.setdefault(table, {})
        if not isinstance(inner, dict):
            raise SpecError(f"--set {key}={text}: {table!r} is a value, not a table")
    try:
        inner[last] = _loaded(f"value = {text}", f"--set {key}")["value"]
    except SpecError as error:
        if not isinstance(error.__cause__, tomllib.TOMLDecodeError):
            raise
        inner[last] = text


def explain(error: ValidationError, form: type[Spec]) -> str:
    """Return a validation error on one line, with the nearest known key."""
    parts = []
    for problem in error.errors():
        where = [str(step) for step in problem["loc"]]
        key = ".".join(where) or "the file"
        if problem["type"] == "extra_forbidden":
            known = _keys_at(form, where[:-1])
            hint = nearest(where[-1], known) or f"; known keys: {', '.join(known)}"
            parts.append(f"unknown key {key!r}{hint}")
        elif problem["type"] == "missing":
            parts.append(f"missing key {key!r}")
        elif problem["type"] == "value_error":
            parts.append(f"{key}: {problem['ctx']['error']}")
        else:
            came = without_secrets(_repr(problem["input"]))
            came = came if len(came) <= 60 else came[:57] + "..."
            message = problem["msg"][0].lower() + problem["msg"][1:]
            hint = ""
            if problem["type"] == "literal_error":
                known = re.findall("'([^']+)'", problem["ctx"]["expected"])
                hint = nearest(str(problem["input"]), known)
            parts.append(f"{key}: {message}, got {came}{hint}")
    return "; ".join(parts)


def _repr(value: object) -> str:
    return shown(value) if isinstance(value, int) else repr(value)  # of any length


def _keys_at(form: type[Spec], where: list[str]) -> list[str]:
    for step in where:
        field = form.model_fields.get(step)
        if field is None:
            return []
        # "Spec" or "Spec | None"
        choices = get_args(field.annotation) or (field.annotation,)
        specs = [c for c in choices if isinstance(c, type) and issubclass(c, Spec)]
        if not specs:
            return []
        form = specs[0]
    return sorted(form.model_fields)
