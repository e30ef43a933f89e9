"""The networks, functions and batches that the benchmark runs on."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from bo_act.activations.module import Activation
from bo_act.networks import load_network
from bo_act.specs import ModelSpec

# Channels and side of the images of each network.
NETWORKS = {"mlp": (1, 28), "all_cnn_c": (3, 32), "resnet56": (3, 32), "vit": (3, 32)}
FUNCTIONS = (
    "relu(x)",
    "tanh(x)",
    "swish(x)",
    "mul(sigmoid(x),erf(x))",
    "elu(x)",
    "max(tanh(x),arctan(x))",
    "softplus(x)",
    "sub(arcsinh(x),sigmoid(x))",
)
SEED = 0


@dataclass(frozen=True)
class Problem:
    """One network on one batch of images (B, C, H, W) with labels (B,), the same in each run."""

    name: str
    images: Tensor
    labels: Tensor

    @classmethod
    def make(cls, name: str, batch: int, device: str) -> Problem:
        """Draw the batch: noise whose power falls with the square of the frequency.

        That is the spectrum of natural images (Field 1987). White noise would give the first
        layers eigenvalues that are all alike; real images, and these, have them spread widely.
        """
        channels, side = NETWORKS[name]
        generator = torch.Generator().manual_seed(SEED)
        noise = torch.fft.rfft2(torch.randn(batch, channels, side, side, generator=generator))
        rows, columns = torch.fft.fftfreq(side)[:, None], torch.fft.rfftfreq(side)[None, :]
        images = torch.fft.irfft2(noise / torch.hypot(rows, columns).clamp(min=1 / side))
        labels = torch.randint(10, (batch,), generator=generator)
        images = (images - images.mean()) / images.std()
        return cls(name, images.to(device), labels.to(device))

    def network(self, function: str) -> nn.Module:
        """Build the network, with the same weights for each function."""
        builder = load_network(ModelSpec(name=self.name))
        channels, side = NETWORKS[self.name]
        return builder(
            lambda: Activation(function),
            in_channels=channels,
            image_size=side,
            num_classes=10,
            seed=SEED,
        ).to(self.images.device)
