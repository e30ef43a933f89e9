"""Features of a few functions in a tiny network, and networks that die on the way."""

from __future__ import annotations

import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn

from bo_act.features.compute import compute_features
from bo_act.features.table import FeatureTable
from bo_act.spaces.space import Space
from bo_act.specs import FeaturesSpec, SpaceSpec

SPEC = FeaturesSpec(quantiles=8)
IMAGES = torch.randn(6, 1, 2, 2, generator=torch.Generator().manual_seed(0))
LABELS = torch.tensor([0, 1, 0, 1, 1, 0])
PLACE = "add(x,tanh(x))"  # the function at which something happens


@dataclass(frozen=True)
class Net:
    """A tiny network that does what it is told to: at ``PLACE``, or everywhere (linger)."""

    what: str = ""
    folder: Path = Path()

    def __call__(self, activation) -> nn.Module:
        function = activation()
        if self.what == "linger":
            time.sleep(0.03)
        elif repr(function) == f"Activation({PLACE})":
            getattr(self, self.what, lambda: None)()
        return nn.Sequential(nn.Flatten(), nn.Linear(4, 3), function, nn.Linear(3, 2))

    def die(self) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    def die_late(self) -> None:
        while not any(self.folder.glob("*/fim-*")):  # once another worker's shard is kept
            time.sleep(0.01)
        self.die()

    def die_once(self) -> None:
        flag = self.folder / "died"
        if not flag.exists():
            flag.touch()
            self.die()

    def hang(self) -> None:
        (self.folder / "hanging").write_text(str(os.getpid()))
        time.sleep(600)

    def fail(self) -> None:
        raise ZeroDivisionError("a defect of the network")


def a_few() -> Space:
    return Space(
        SpaceSpec(
            name="few",
            unary=("identity", "tanh", "relu", "exp", "erf"),
            binary=("add", "mul"),
            schemas=("binary(unary(x),unary(x))",),
            baselines=("relu(x)",),
        )
    )


def features(space, network=None, **changes) -> FeatureTable:
    options = {"inputs": IMAGES, "targets": LABELS, "spec": SPEC, "key": {}, "threads": 1}
    return compute_features(space, network=network or Net(), **(options | changes))


def kept(folder: Path) -> dict[str, bytes]:
    """The shards by name."""
    return {path.name: path.read_bytes() for path in folder.glob("*/fim-*.parquet")}


def assert_same_table(one: FeatureTable, other: FeatureTable) -> None:
    assert one.hash == other.hash
    for name, found in one.blocks.items():
        np.testing.assert_array_equal(found.values, other.blocks[name].values)
        assert found.reasons == other.blocks[name].reasons
