"""The network of a study file's ``[model]`` and ``[data]``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from bo_act.data.samples import Inputs
from bo_act.errors import NetworkError
from bo_act.networks import Activations, NetworkBuilder, initialize, materialize
from bo_act.networks.initialization import Initialization
from bo_act.user_code.failures import USERS, is_machines, one_line


@dataclass(frozen=True)
class StudyNetwork:
    """A study's network without its activation function; can be pickled.

    Attributes:
        builder: the model file.
        facts: of the data, see ``Data``.
        example: some inputs: only shapes and dtypes matter.
        seed: of the initial weights.
        init: the method of initialization.
    """

    builder: NetworkBuilder
    facts: Mapping[str, Any]
    example: Inputs
    seed: int
    init: Initialization = "default"

    def __call__(self, activation: Activations) -> nn.Module:
        """Build the untrained network with fresh activation modules."""
        network = self.builder(activation, seed=self.seed, **self.facts)
        materialize(network, self.builder.path, inputs=self.example, seed=self.seed)
        try:
            initialize(network, self.init, inputs=self.example, seed=self.seed)
        except USERS as error:
            if is_machines(error):
                raise
            raise NetworkError(
                f"{self.builder.path}: the network fails when its weights are set (model.init = "
                f"{self.init!r}): {one_line(error)}"
            ) from error
        return network

    @property
    def key(self) -> dict[str, Any]:
        """Everything that determines the network, except its activation function and the seed."""
        init = {} if self.init == "default" else {"init": self.init}
        return {
            "source": self.builder.source_hash,
            **self.builder.asked(self.facts),
            **init,
        }
