"""JSON Schema of users' files, for completion and checks in editors."""

from __future__ import annotations

import inspect
import re
from typing import Any

from bo_act.specs import SpaceSpec, Spec, StudySpec

FORMS: dict[str, type[Spec]] = {"study": StudySpec, "space": SpaceSpec}
"""What there is a schema of."""


def schema(kind: str) -> dict[str, Any]:
    """Return the schema of ``study`` or ``space`` files.

    Descriptions are from the specs' docstrings.
    """
    form = FORMS[kind]
    content = form.model_json_schema(mode="validation")
    described = {spec.__name__: spec for spec in _forms(form)}
    _describe(content, form)
    for name, part in content.get("$defs", {}).items():
        if name in described:
            _describe(part, described[name])
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **content}


def _forms(form: type[Spec]) -> set[type[Spec]]:
    """Return a spec and all inner ones."""
    forms, waiting = {form}, [form]
    while waiting:
        for field in waiting.pop().model_fields.values():
            for inner in _classes(field.annotation):
                if inner not in forms:
                    forms.add(inner)
                    waiting.append(inner)
    return forms


def _classes(annotation: Any) -> list[type[Spec]]:
    if isinstance(annotation, type) and issubclass(annotation, Spec):
        return [annotation]
    return [spec for part in getattr(annotation, "__args__", ()) for spec in _classes(part)]


def _describe(part: dict[str, Any], form: type[Spec]) -> None:
    text = inspect.getdoc(form) or ""
    summary, _, rest = text.partition("\nAttributes:\n")
    part["description"] = " ".join(summary.split())
    known = _attributes(rest)
    for name, field in part.get("properties", {}).items():
        if name in known:
            field["description"] = known[name]


def _attributes(text: str) -> dict[str, str]:
    """Read ``name, other: what they are`` of a docstring, indented by four."""
    meanings: dict[str, str] = {}
    for entry in re.split(r"\n(?=    \S)", text):
        names, colon, meaning = entry.strip().partition(": ")
        if colon and re.fullmatch(r"[a-z_0-9, ]+", names):
            said = " ".join(meaning.split()).replace("``", "`")
            meanings |= {name.strip(): said for name in names.split(",")}
    return meanings
