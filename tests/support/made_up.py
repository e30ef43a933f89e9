"""What searches are tested on: points with a smooth objective, and a small real task."""

from __future__ import annotations

import numpy as np

BLOCKS = {"outputs": slice(0, 2), "fim": slice(2, 4)}
CLOUD = np.random.default_rng(0).uniform(size=(120, 4))
CLOUD.setflags(write=False)

# Ends within [training]: what a test adds first belongs there.
TASK = """
[model]
name = "mlp"
options = { widths = [8] }
[data]
name = "digits"
train = 200
validation = 100
[training]
epochs = 2
threads = 1
"""


def smooth(points: np.ndarray) -> np.ndarray:
    """An objective on two blocks of two columns, its best near a corner region."""
    a, b = points[:, :2], points[:, 2:]
    hill = np.exp(-6 * ((a - 0.8) ** 2).sum(axis=1)) + np.exp(-6 * ((b - 0.3) ** 2).sum(axis=1))
    return hill + hill**2 / 2
