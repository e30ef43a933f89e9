"""A user's own parts of a search method, named in a study file."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from bo_act.errors import SpecError
from bo_act.io import digest
from bo_act.specs import StudySpec
from bo_act.user_code.files import load_function

METHOD_PARTS = {
    "embedding": "a function of the FeatureTable that returns points (N, d)",
    "surrogate": "a function make_model(train_X, train_Y) that returns a BoTorch model",
    "acquisition": (
        "a function make_acquisition(model, best_f) that returns a BoTorch acquisition function"
    ),
    "strategy": "a class with a method choose(observations, candidates)",
}
"""Keys of a study file whose ``name`` may be ``FILE.py:FUNCTION``, and what that shall be."""


@dataclass(frozen=True)
class OwnMethod:
    """A loaded part.

    Attributes:
        source_hash: sha256 of its file's content, see ``UserFile``.
        function: object of that name in the file.
    """

    source_hash: str
    function: Callable[..., Any]

    @classmethod
    def load(cls, spec: StudySpec, key: str) -> OwnMethod | None:
        """Return the user's part named in a study file; None for a built-in one.

        Raises:
            SpecError: there is no such file or function, or it cannot be imported.
        """
        part = getattr(spec, key)
        if not part.is_own:
            return None
        file, function = load_function(
            part.name, key=f"{key}.name", expected=METHOD_PARTS[key], error=SpecError
        )
        return cls(digest(file.content), function)
