"""Your own surrogates: any BoTorch model, made by your function."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, TypeVar, cast

import torch
from botorch.models.model import Model
from torch import Tensor

from bo_act.errors import SearchError
from bo_act.search.surrogate.exact import ExactPosterior, is_exact
from bo_act.search.surrogate.surrogate import Surrogate
from bo_act.specs import SurrogateSpec
from bo_act.specs.search import MethodPart
from bo_act.user_code.failures import USERS, is_machines, one_line
from bo_act.user_code.files import call_with

MakeModel = Callable[..., Model]
"""``make_model(train_X, train_Y, train_Yvar, blocks, seed) -> Model``, see ``OwnSurrogate``."""

Part = TypeVar("Part", bound=MethodPart)

_SAMPLES = 256  # of a posterior without moments
_LEAST = 1e-10  # variance; acquisition functions divide by the deviation


@dataclass(frozen=True)
class OwnSurrogate:
    """A surrogate that your function makes, in place of a ``SurrogateSpec``.

    Attributes:
        make: returns a fitted BoTorch model. It gets the arguments of its signature by name:
            ``train_X`` (n, d) float64 in [0, 1]; ``train_Y`` (n, 1) warped values, larger is
            better; ``train_Yvar`` (n, 1) if the noise is known, else None; ``blocks`` (name →
            slice of columns); ``seed``. torch's random state is seeded before each call.
        targets: warping of the values, as in a ``SurrogateSpec``.
        noise: standard deviation of a measurement in units of the value, if known.
        name: for messages.

    Examples:
        >>> from botorch.fit import fit_gpytorch_mll
        >>> from botorch.models import SingleTaskGP
        >>> from gpytorch.mlls import ExactMarginalLogLikelihood
        >>> def make_model(train_X, train_Y):
        ...     model = SingleTaskGP(train_X, train_Y)
        ...     fit_gpytorch_mll(ExactMarginalLogLikelihood(model.likelihood, model))
        ...     return model
        >>> OwnSurrogate(make_model).name
        'make_model'
    """

    make: MakeModel
    targets: Literal["winsorized", "rank_normal", "standardized"] = "winsorized"
    noise: float | None = None
    name: str = ""
    is_own: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if not self.name:
            object.__setattr__(self, "name", getattr(self.make, "__name__", "make_model"))

    @classmethod
    def of(cls, given: SurrogateSpec | OwnSurrogate | MakeModel) -> SurrogateSpec | OwnSurrogate:
        """Return the surrogate of an argument: a spec, or a function that makes a model.

        Raises:
            SearchError: it is neither.
        """
        makes = "make_model(train_X, train_Y) that returns a BoTorch model"
        if isinstance(given, OwnSurrogate):
            return given
        spec = given_spec(given, SurrogateSpec, part="surrogate", makes=makes)
        return cls(cast(MakeModel, given)) if spec is None else spec


AnySurrogate = SurrogateSpec | OwnSurrogate


def given_spec(given: object, spec: type[Part], *, part: str, makes: str) -> Part | None:
    """Return the spec of a part of a method; None if the argument is a function.

    Args:
        given: the argument.
        spec: type of the spec.
        part: name of the argument.
        makes: expected form of the function, for errors.

    Raises:
        SearchError: it is neither.
    """
    if isinstance(given, spec):
        if given.is_own:
            raise SearchError(
                f"the {part} {given.name!r} names a file; from Python, give the function"
            )
        return given
    if not callable(given):
        article = "an" if part.startswith("a") else "a"
        raise SearchError(
            f"{part}: expected {article} {spec.__name__}, or a function {makes}, got "
            f"{type(given).__name__}"
        )
    return None


class BoTorchSurrogate(Surrogate):
    """A BoTorch model that predicts many single points.

    Args:
        model: fitted.
        name: for messages.
    """

    def __init__(self, model: Model, name: str) -> None:
        super().__init__()
        self.botorch, self.name = model, name
        noise = getattr(getattr(model, "likelihood", None), "noise", None)
        self.noise = noise.detach().mean() if isinstance(noise, Tensor) else 0.0
        self.exact: ExactPosterior | None = None

    def botorch_model(self) -> Model:
        """Return the model itself."""
        return self.botorch

    def mean_and_variance(self, points: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean and variance of the value, (m,) each.

        Exact Gaussian processes use one Cholesky factor, see ``ExactPosterior``. Mixtures, as of
        fully Bayesian models, have the moments of the mixture. Posteriors without moments have
        those of 256 samples, the same ones for the same points.

        Raises:
            SearchError: the model fails, or returns something else.
        """
        try:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(0)
                mean, variance = self._predicted(points)
        except USERS as error:
            if is_machines(error):
                raise
            raise SearchError(
                f"the surrogate {self.name!r} fails to predict: {one_line(error)}"
            ) from error
        shape = (len(points),)
        if mean.numel() != len(points) or variance.numel() != len(points):
            raise SearchError(
                f"the surrogate {self.name!r}: expected a posterior of one value at each of "
                f"{len(points)} points, got means of shape {tuple(mean.shape)}"
            )
        return mean.reshape(shape).to(points), variance.reshape(shape).to(points).clamp_min(_LEAST)

    def _predicted(self, points: Tensor) -> tuple[Tensor, Tensor]:
        if not is_exact(self.botorch):
            return _moments(self.botorch.posterior(points))
        if self.exact is None:
            self.exact = ExactPosterior(self.botorch)
        return self.exact.mean_and_variance(points)


def _moments(posterior: Any) -> tuple[Tensor, Tensor]:
    """Return mean and variance of a posterior, (..., m, 1) each."""
    if hasattr(posterior, "mixture_mean"):
        return posterior.mixture_mean.detach(), posterior.mixture_variance.detach()
    try:
        return posterior.mean.detach(), posterior.variance.detach()
    except (NotImplementedError, AttributeError):
        samples = posterior.rsample(torch.Size([_SAMPLES])).detach()
        return samples.mean(dim=0), samples.var(dim=0)


def fit_own(
    own: OwnSurrogate,
    x: Tensor,
    y: Tensor,
    blocks: Mapping[str, slice],
    *,
    believed: Tensor,
    ceiling: Tensor,
    variances: Tensor | None,
    seed: int,
) -> BoTorchSurrogate:
    """Make a model of observations, with points without a value at its own predictions.

    Args:
        own: makes the model.
        x: (n, d) float64 points in [0, 1].
        y: (n,) float64 warped targets.
        blocks: columns of each feature block.
        believed: (p, d) points without a value. If there are any, the model is made twice: the
            second one has them at the predictions of the first.
        ceiling: (p,) upper bounds of their values.
        variances: (n,) of each measurement in units of the warped target, if known.
        seed: of random choices.

    Raises:
        SearchError: the function fails, or returns no BoTorch model.
    """
    offered = {
        "train_X": x,
        "train_Y": y.unsqueeze(-1),
        "train_Yvar": None if variances is None else variances.unsqueeze(-1),
        "blocks": dict(blocks),
        "seed": seed,
    }
    model = _made(own, offered, seed)
    if len(believed):
        value = torch.minimum(model.mean_and_variance(believed)[0], ceiling)
        y = torch.cat([y, value]).unsqueeze(-1)
        offered |= {"train_X": torch.cat([x, believed]), "train_Y": y}
        if variances is not None:
            more = variances.mean().expand(len(believed))
            offered["train_Yvar"] = torch.cat([variances, more]).unsqueeze(-1)
        model = _made(own, offered, seed)
    return model


def _made(own: OwnSurrogate, offered: Mapping[str, Any], seed: int) -> BoTorchSurrogate:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed % 2**63)
        model = call_with(own.make, offered, what=f"the surrogate {own.name!r}", error=SearchError)
    if not isinstance(model, Model):
        raise SearchError(
            f"the surrogate {own.name!r}: expected a botorch.models.model.Model, got "
            f"{type(model).__name__}"
        )
    return BoTorchSurrogate(model.eval(), own.name)
