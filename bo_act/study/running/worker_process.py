"""``bo-act worker -``, a worker started by ``bo-act run --workers``."""

from __future__ import annotations

import json
import os
import threading

import optuna
import torch
from pydantic import ValidationError

from bo_act.errors import SpecError
from bo_act.specs import StudySpec
from bo_act.study.running.worker import work


def as_message(spec: StudySpec) -> bytes:
    """Return a study for its workers' stdin: one line of JSON, with the storage's password."""
    content = spec.model_dump(mode="json") | {"storage": spec.storage}
    return json.dumps(content).encode() + b"\n"


def work_for_parent() -> None:
    """Work on the study that the parent writes to stdin; end when the parent ends.

    Raises:
        BoActError: as ``work``; or stdin holds no study.
    """
    with open(0, "rb", buffering=0, closefd=False) as stdin:
        line = stdin.readline()
    try:
        spec = StudySpec.model_validate_json(line)
    except ValidationError as error:
        raise SpecError(
            "expected a study as one line of JSON on stdin (bo-act run writes it); give bo-act "
            "worker the name of a study, or the path of its .toml file"
        ) from error
    # User code may read from stdin, or close it.
    parent, nothing = os.dup(0), os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    torch.set_num_threads(spec.training.threads or 1)
    work(spec, checked=True)


def _end_with(pipe: int) -> None:
    while os.read(pipe, 1024):
        pass
    os._exit(1)
