"""Optional dependencies (extras), and the errors for missing ones."""

from __future__ import annotations

import importlib.util
import warnings
from collections.abc import Collection
from importlib import import_module
from types import ModuleType

from bo_act.errors import MissingExtraError
from bo_act.io import one_line

EXTRAS: dict[str, dict[str, str]] = {
    "umap": {"umap": "umap-learn"},
    "postgres": {"psycopg": "psycopg"},
    "ray": {"ray": "ray"},
    "dashboard": {"optuna_dashboard": "optuna-dashboard"},
    "report": {"matplotlib": "matplotlib", "jinja2": "jinja2", "plotly": "plotly"},
    "timm": {"timm": "timm"},
    "onnx": {"onnx": "onnx"},
    "tensorboard": {"tensorboard": "tensorboard"},
    "transformers": {"transformers": "transformers"},
    "wandb": {"wandb": "wandb"},
    "mlflow": {"mlflow": "mlflow-skinny", "sqlalchemy": "sqlalchemy"},
}
"""Extra → the modules that it brings, each with the name of its package."""


def has_extra(extra: str) -> bool:
    """Tell whether all modules of an extra are installed, without importing them."""
    return all(map(_is_there, EXTRAS[extra]))


def require_extra(
    extra: str, needed_for: str, *, modules: Collection[str] = (), otherwise: str = ""
) -> ModuleType:
    """Import the modules of an extra.

    Args:
        extra: its name in ``pip install 'bo-act[NAME]'``.
        needed_for: its purpose, for the message, such as ``"a report"``.
        modules: the needed ones of the extra; default: all.
        otherwise: the alternative, for the message.

    Returns:
        The first of the modules.

    Raises:
        MissingExtraError: one is not installed, or cannot be imported.
    """
    wanted = modules or EXTRAS[extra]
    missing = [EXTRAS[extra][module] for module in wanted if not _is_there(module)]
    advice = f"; {otherwise}" if otherwise else ""
    if missing:
        is_or_are = "is" if len(missing) == 1 else "are"
        raise MissingExtraError(
            f"{needed_for} needs {' and '.join(missing)}, which {is_or_are} not installed; "
            f"install with: pip install 'bo-act[{extra}]'{advice}"
        )
    imported = []
    for module in wanted:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                imported.append(import_module(module))
        except Exception as error:  # incompatible versions fail in many ways
            raise MissingExtraError(
                f"{needed_for} needs {EXTRAS[extra][module]}, which is installed but cannot be "
                f"imported ({one_line(error)}); reinstall it with: pip install --force-reinstall "
                f"'bo-act[{extra}]'{advice}"
            ) from error
    return imported[0]


def _is_there(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ValueError:  # an entry put into sys.modules by hand
        return False
