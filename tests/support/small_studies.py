"""Studies of a few small functions on digits, for the tests of studies."""

from __future__ import annotations

import json

from bo_act.specs import StudySpec
from bo_act.study.storage.opening import load_study

SPACE = """
name = "few"
schemas = ["binary(unary(x),unary(x))"]
unary = ["identity", "tanh", "relu", "exp", "erf", "reciprocal"]
binary = ["add", "mul", "max"]
baselines = ["relu(x)", "tanh(x)"]
"""

STORAGE = "studies.log"
"""Where the storage is not the point: a journal takes a third of a database's processor time."""

BASE = {
    "name": "tiny",
    "space": "few.toml",
    "trials": 8,
    "storage": STORAGE,
    "model": {"name": "mlp", "options": {"widths": [16, 16]}},
    "data": {"name": "digits", "train": 256, "validation": 200},
    "training": {"epochs": 3, "batch_size": 64, "threads": 1, "device": "cpu"},
    "features": {"batch_size": 32, "quantiles": 16},
    "confirm": {"top": 2, "seeds": 2, "baselines": ["gelu(x)"]},
}


def make(**changes) -> StudySpec:
    content = json.loads(json.dumps(BASE))
    for key, value in changes.items():
        if isinstance(value, dict) and isinstance(content.get(key), dict):
            content[key] |= value
        else:
            content[key] = value
    return StudySpec.model_validate(content)


def history(spec: StudySpec) -> list[tuple]:
    return [
        (t.number, t.user_attrs["activation"], t.value, t.state.name, t.intermediate_values)
        for t in load_study(spec).trials
    ]
