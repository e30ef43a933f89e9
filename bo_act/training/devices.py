"""Device, CPU threads, random states and deterministic kernels of a training."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

import torch

from bo_act.errors import SpecError


def pick_device(name: str) -> torch.device:
    """Return the named device; ``auto`` is the GPU if there is one, else the CPU.

    Raises:
        SpecError: there is no such device.
    """
    cuda, mps = torch.cuda.is_available(), torch.backends.mps.is_available()
    if name == "auto":
        return torch.device("cuda" if cuda else "mps" if mps else "cpu")
    device = torch.device(name)
    count = {"cpu": 1, "cuda": torch.cuda.device_count() if cuda else 0, "mps": int(mps)}
    if (device.index or 0) >= count[device.type]:
        raise SpecError(
            f"training.device: expected an available device, got {name!r} on a machine "
            f"with {count[device.type]} {device.type} devices; use 'auto' or 'cpu'"
        )
    return device


def rng_devices(device: torch.device) -> list[torch.device]:
    """Return the devices besides the CPU with random states of a training."""
    return [device] if device.type == "cuda" else []


def channels_last(images: torch.Tensor) -> torch.Tensor:
    """Return images with the channels innermost in memory."""
    return images.contiguous(memory_format=torch.channels_last)


@contextlib.contextmanager
def cpu_threads(count: int | None) -> Iterator[None]:
    """Set the number of torch's CPU threads inside; None changes nothing."""
    if count is None:
        yield
        return
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextlib.contextmanager
def deterministic_kernels(wanted: bool) -> Iterator[None]:
    """Restrict torch to deterministic kernels inside, and restore its flags.

    ``CUBLAS_WORKSPACE_CONFIG`` stays set, because cuBLAS reads it only at first use.
    """
    if not wanted:
        yield
        return
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    cudnn = torch.backends.cudnn
    before = (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
        cudnn.deterministic,
        cudnn.benchmark,
    )
    torch.use_deterministic_algorithms(True)
    cudnn.deterministic, cudnn.benchmark = True, False
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])
        cudnn.deterministic, cudnn.benchmark = before[2:]
