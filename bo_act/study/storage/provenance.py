"""Provenance of a study's trials: versions, hardware and the command, recorded in the study."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import re
import shlex
import sys
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path

import optuna
import torch

from bo_act.urls import shown_url

MADE_BY = "bo_act:made_by:"
"""Prefix of a study's user attributes with one environment each, by its digest."""


def environment() -> dict[str, str]:
    """Return the versions, hardware and command of this process, by name."""
    described = {
        "command": _command(),
        "bo-act": version("bo-act"),
        "Python": platform.python_version(),
        "torch": str(torch.__version__),
        "Optuna": optuna.__version__,
        "BoTorch": version("botorch"),
        "numpy": version("numpy"),
        "system": f"{platform.system()} {platform.machine()}",
        "processor": f"{_processor()}, {os.cpu_count()} cores",
    }
    if torch.cuda.is_available():
        names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
        described["GPU"] = ", ".join(f"{names.count(n)} x {n}" for n in dict.fromkeys(names))
        described["CUDA"] = str(torch.version.cuda)
    return described


def keep_environment(study: optuna.Study) -> None:
    """Record this process's environment in a study, once for each environment."""
    current = environment()
    digest = hashlib.sha256(json.dumps(current, sort_keys=True).encode()).hexdigest()[:16]
    if MADE_BY + digest not in study.user_attrs:
        study.set_user_attr(MADE_BY + digest, current)


def environments(study: optuna.Study) -> list[Mapping[str, str]]:
    """Return all environments that worked on a study, in no particular order."""
    return [value for key, value in study.user_attrs.items() if key.startswith(MADE_BY)]


def _command() -> str:
    """Return the command line of this process, without passwords in URLs."""
    script, *arguments = sys.argv or [""]
    name = "bo-act" if Path(script).name in ("bo-act", "__main__.py") else Path(script).name
    return shlex.join([name, *map(shown_url, arguments)])


def _processor() -> str:
    file = Path("/proc/cpuinfo")
    if file.is_file():
        content = file.read_text(encoding="utf-8", errors="replace")
        named = re.search(r"^model name\s*:\s*(.+)$", content, re.M)
        if named:
            return named.group(1).strip()
    return platform.processor() or platform.machine()
