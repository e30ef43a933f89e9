"""Reading the files that users write.

Unknown keys are refused with the nearest known one, values are checked, and every error is one
line that names the file, the place in it, what was expected and what came.
"""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any, TypeVar, get_args

from pydantic import ValidationError

from bo_act import library
from bo_act.errors import SpecError, nearest
from bo_act.specs import SpaceSpec, Spec, StudySpec
from bo_act.urls import without_secrets

S = TypeVar("S", bound=Spec)


def read_space(name: str) -> SpaceSpec:
    """Read a space file by name or path.

    Raises:
        ContentNotFoundError: no such file.
        SpecError: the file is not a space.
    """
    return read_spec(library.find("spaces", name), SpaceSpec)


def read_study(name: str, overrides: dict[str, str] | None = None) -> StudySpec:
    """Read a study file by name or path.

    Args:
        name: bare name or path.
        overrides: values that replace the file's, by dotted key: ``{"training.epochs": "3"}``;
            each value is read as TOML, or as a plain string where it is not TOML.

    Raises:
        ContentNotFoundError: no such file.
        SpecError: the file is not a study.
    """
    return read_spec(library.find("studies", name), StudySpec, overrides)


def read_spec(path: Path, form: type[S], overrides: dict[str, str] | None = None) -> S:
    """Read a file of any form; see ``read_study``."""
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except tomllib.TOMLDecodeError as error:
        raise SpecError(f"{path}: not valid TOML: {error}") from error
    except (OSError, UnicodeDecodeError) as error:
        raise SpecError(f"{path}: cannot be read as text: {error}") from error
    for key, text in (overrides or {}).items():
        _override(content, key, text)
    try:
        return form.model_validate(content)
    except ValidationError as error:
        raise SpecError(f"{path}: {explain(error, form)}") from error


def _override(content: dict[str, Any], key: str, text: str) -> None:
    *tables, last = key.split(".")
    place = content
    for table in tables:
        place = place.setdefault(table, {})
        if not isinstance(place, dict):
            raise SpecError(f"--set {key}={text}: {table!r} is a value, not a table")
    try:
        place[last] = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        place[last] = text


def explain(error: ValidationError, form: type[Spec]) -> str:
    """Say on one line what is wrong with a file, naming the nearest known key."""
    parts = []
    for problem in error.errors():
        where = [str(step) for step in problem["loc"]]
        place = ".".join(where) or "the file"
        if problem["type"] == "extra_forbidden":
            known = _keys_at(form, where[:-1])
            hint = nearest(where[-1], known) or f"; known keys: {', '.join(known)}"
            parts.append(f"unknown key {place!r}{hint}")
        elif problem["type"] == "missing":
            parts.append(f"missing key {place!r}")
        elif problem["type"] == "value_error":
            parts.append(f"{place}: {problem['ctx']['error']}")
        else:
            came = without_secrets(repr(problem["input"]))
            came = came if len(came) <= 60 else came[:57] + "..."
            message = problem["msg"][0].lower() + problem["msg"][1:]
            hint = ""
            if problem["type"] == "literal_error":
                known = re.findall("'([^']+)'", problem["ctx"]["expected"])
                hint = nearest(str(problem["input"]), known)
            parts.append(f"{place}: {message}, got {came}{hint}")
    return "; ".join(parts)


def _keys_at(form: type[Spec], where: list[str]) -> list[str]:
    for step in where:
        field = form.model_fields.get(step)
        if field is None:
            return []
        # "Spec" or "Spec | None"
        choices = get_args(field.annotation) or (field.annotation,)
        specs = [one for one in choices if isinstance(one, type) and issubclass(one, Spec)]
        if not specs:
            return []
        form = specs[0]
    return sorted(form.model_fields)
