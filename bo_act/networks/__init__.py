"""Networks from model files and libraries, with replaced activations."""

from bo_act.networks.builder import Activations, NetworkBuilder, load_network
from bo_act.networks.in_place import check_gradients
from bo_act.networks.initialization import initialize
from bo_act.networks.lazy import materialize

__all__ = [
    "Activations",
    "NetworkBuilder",
    "check_gradients",
    "initialize",
    "load_network",
    "materialize",
]
