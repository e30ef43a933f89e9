"""Nothing of ours depends on what somebody has set in torch for all of a process or a block."""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest
import torch
from torch import nn

import bo_act
from bo_act import ActivationSampler, Space, compute_features, fim_spectra, improvement_left, why
from bo_act.activations.module import Activation
from bo_act.data.loading import Data
from bo_act.data.samples import SampleSet
from bo_act.dependencies.torch_state import plain_torch
from bo_act.networks import initialize, load_network
from bo_act.specs import AcquisitionSpec, FeaturesSpec, ModelSpec, SpaceSpec, TrainingSpec
from bo_act.training.trainer import train

PACKAGE = Path(bo_act.__file__).parent
WHOLE = {"randperm", "randint", "arange"}
FLOATING = {
    "zeros", "ones", "empty", "full", "rand", "randn", "normal", "linspace", "logspace", "eye",
    "tensor", "scalar_tensor",
}  # fmt: skip
KEEPING = {"as_tensor", "asarray"}  # the dtype of what they are given


def careless(tree: ast.AST) -> list[tuple[int, str]]:
    """Calls of torch that make a tensor without saying where, or of what dtype."""
    found = []
    for node in ast.walk(tree):
        if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)):
            continue
        home, name = node.func.value, node.func.attr
        if not (isinstance(home, ast.Name) and home.id == "torch"):
            continue
        said = {keyword.arg for keyword in node.keywords}
        wanted = {"device"} if name in WHOLE | FLOATING | KEEPING else set()
        wanted |= {"dtype"} if name in FLOATING else set()
        if None not in said and wanted - said:
            found.append((node.lineno, name))
    return found


def test_every_tensor_is_made_on_a_device_and_of_a_dtype():
    found = [
        f"{path.relative_to(PACKAGE)}:{line} torch.{name}"
        for path in sorted(PACKAGE.rglob("*.py"))
        for line, name in careless(ast.parse(path.read_text(encoding="utf-8")))
    ]
    assert not found, "\n".join(found)


# --- states of torch that somebody may have set -------------------------------------------------

STATES: dict[str, Callable[[], AbstractContextManager[object]]] = {
    "default device": lambda: torch.device("meta"),
    "float64": lambda: default_dtype(torch.float64),
    "bfloat16": lambda: default_dtype(torch.bfloat16),
    "no_grad": torch.no_grad,
    "inference_mode": torch.inference_mode,
    "autocast": lambda: torch.autocast("cpu", dtype=torch.bfloat16),
    "deterministic": lambda: flag(torch.use_deterministic_algorithms),
    "anomaly detection": torch.autograd.detect_anomaly,
}


@contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)


@contextmanager
def flag(switch: Callable[[bool], None]) -> Iterator[None]:
    switch(True)
    try:
        yield
    finally:
        switch(False)


def space() -> Space:
    return Space(
        SpaceSpec(
            name="few",
            unary=("zero", "identity", "exp", "tanh"),
            binary=("add", "div"),
            schemas=("binary(unary(x),unary(x))",),
            expressions=("relu(x)",),
            baselines=("relu(x)", "tanh(x)"),
        )
    )


def network(activation: Callable[[], nn.Module]) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 3, 3), activation(), nn.BatchNorm2d(3), nn.Flatten(), nn.Linear(108, 4)
    )


# Drawn before any state is set, as the data of a program are.
IMAGES = torch.randn(12, 1, 8, 8, generator=torch.Generator().manual_seed(0))
LABELS = torch.arange(12) % 4
SPEC = FeaturesSpec(subset=3, quantiles=8)


def features() -> list[np.ndarray]:
    found = compute_features(space(), network=network, inputs=IMAGES, targets=LABELS, spec=SPEC)
    return [block.values for block in found.blocks.values()]


def searched(**options: Any) -> list[Any]:
    functions = space()
    sampler = ActivationSampler(functions, seed=0, **options)
    study = optuna.create_study(direction="maximize", sampler=sampler)

    def objective(trial: optuna.Trial) -> float:
        x = torch.tensor([0.3], device="cpu", dtype=torch.float64)
        rate = trial.suggest_float("rate", 0.001, 1.0) if "parameters" in options else 0.0
        return float(functions.suggest(trial)(x).detach().clamp(-3, 3)) + rate

    study.optimize(objective, n_trials=8)
    left = improvement_left(study, sampler)
    last = [] if options else [str(why(study, sampler, 7))]
    told = [(t.user_attrs["activation"], t.params.get("rate"), t.value) for t in study.trials]
    return [told, left, *last]


def trained() -> list[Any]:
    builder = load_network(ModelSpec(name="small_cnn"))
    net = builder(
        lambda: Activation("tanh(x)", normalize=True),
        in_channels=1, image_size=8, num_classes=4, seed=0,
    )  # fmt: skip
    initialize(net, "unit_variance", inputs=IMAGES, seed=0)
    images = SampleSet(IMAGES, LABELS)
    data = Data("made up", images, images, facts={"num_classes": 4, "out_features": 4}, digest="")
    spec = TrainingSpec(epochs=2, batch_size=4, device="cpu", optimizer="adamw")
    result = train(net, data, spec, seed=0)
    return [result.train_loss, result.curve, [w.detach().clone() for w in net.parameters()]]


def spectra() -> list[Any]:
    with torch.random.fork_rng(), torch.device("cpu"):
        torch.manual_seed(0)
        net = network(lambda: Activation("tanh(x)")).float()
    return [fim_spectra(net, IMAGES, LABELS, quantiles=4).quantiles]


def shown() -> list[Any]:
    return [Activation("tanh(x)", normalize=True)._repr_html_(), space()._repr_html_()]


DOINGS: dict[str, Callable[[], list[Any]]] = {
    "features": features,
    "spectra": spectra,
    "a search": searched,
    "a search among trees": lambda: searched(candidates="trees"),
    "a joint search": lambda: searched(
        parameters={"rate": optuna.distributions.FloatDistribution(0.001, 1.0)}
    ),
    "a search along paths": lambda: searched(acquisition=AcquisitionSpec(name="thompson")),
    "training": trained,
    "notebooks": shown,
}


@pytest.fixture(scope="module")
def expected() -> dict[str, list[Any]]:
    return {name: do() for name, do in DOINGS.items()}


def same(one: Any, other: Any) -> bool:
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    if isinstance(one, np.ndarray | torch.Tensor):
        return np.array_equal(one, other, equal_nan=True)
    return one == other


SLOWER = ("a search among trees", "a joint search", "a search along paths")
PAIRS = [
    (state, doing)
    for state in STATES
    for doing in DOINGS
    if doing not in SLOWER or state in ("default device", "float64", "inference_mode")
]


@pytest.mark.filterwarnings("ignore:Anomaly Detection")
@pytest.mark.parametrize(("state", "doing"), PAIRS)
def test_numbers_do_not_depend_on_the_state(state, doing, expected):
    with STATES[state]():
        found = DOINGS[doing]()
    if doing == "spectra" and state in ("float64", "bfloat16"):
        return  # the weights were drawn otherwise, by their owner
    assert same(found, expected[doing])


def test_the_state_is_left_as_it_was():
    with default_dtype(torch.bfloat16), torch.device("meta"), torch.inference_mode():
        with plain_torch():
            assert torch.get_default_dtype() == torch.float32
            assert torch.empty(2, requires_grad=True).sum().requires_grad
            with plain_torch(), ThreadPoolExecutor(1) as pool:
                pool.submit(spectra).result()
            assert torch.get_default_dtype() == torch.float32
        assert torch.empty(0).device.type == "meta"
        assert torch.empty(0).dtype == torch.bfloat16
        assert torch.is_inference_mode_enabled()
