"""Samplers rebuilt from the record in their study."""

from __future__ import annotations

from typing import Any

from optuna.study import Study
from pydantic import ValidationError

from bo_act.errors import BoActError
from bo_act.search.unenumerated import ExpressionPool
from bo_act.spaces.space import Space
from bo_act.specs import AcquisitionSpec, EmbeddingSpec, SpaceSpec, SurrogateSpec
from bo_act.study.sampling.sampler import SEARCH, ActivationSampler
from bo_act.study.storage.trials import own_trials


def sampler_of(study: Study) -> tuple[ActivationSampler | None, str]:
    """Rebuild the sampler of a study, to explain its trials, not to continue the study.

    Returns:
        The sampler and ``""``; or None, and why it cannot be rebuilt.
    """
    noted = study.user_attrs.get(SEARCH)
    if not isinstance(noted, dict):
        return None, "the study has no record of its sampler"
    if noted.get("lacking"):
        return None, f"{noted['lacking']}: from Python, give the sampler"
    try:
        sampler = ActivationSampler(Space(SpaceSpec.model_validate(noted["space"])), **_read(noted))
    except (BoActError, ValidationError, KeyError, TypeError) as error:
        return None, f"the sampler cannot be rebuilt from the study's record: {error}"
    pool = sampler.catalogue if isinstance(sampler.catalogue, ExpressionPool) else None
    here = (pool or sampler.embedding).hash[:16]
    recorded = {t.user_attrs["embedding"] for t in own_trials(study) if "embedding" in t.user_attrs}
    if recorded and here not in recorded:
        return None, (
            "the sampler used features beyond the functions' outputs, which the study does not "
            "store: from Python, give the sampler"
        )
    return sampler, ""


def _read(noted: dict[str, Any]) -> dict[str, Any]:
    return {
        "embedding": EmbeddingSpec.model_validate(noted["embedding"]),
        "surrogate": SurrogateSpec.model_validate(noted["surrogate"]),
        "acquisition": AcquisitionSpec.model_validate(noted["acquisition"]),
        "baselines": noted["baselines"],
        "initial": noted["initial"],
        "candidates": noted["candidates"],
        "activations": tuple(noted["activations"]),
        "seed": noted["seed"],
    }
