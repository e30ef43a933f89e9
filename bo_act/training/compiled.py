"""Compiling a network, or only its activation functions, if possible."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from bo_act.activations.module import Activation
from bo_act.data.samples import Samples, call, mapped
from bo_act.specs import TrainingSpec
from bo_act.training.checkpoint import on_cpu
from bo_act.training.devices import channels_last, rng_devices
from bo_act.training.losses import outputs_of
from bo_act.training.optimization import autocast


def compiled(
    network: nn.Module, samples: Samples, spec: TrainingSpec
) -> tuple[Callable[..., Any], str | None]:
    """Compile and test the part that the recipe names; the network stays unchanged.

    Args:
        network: on the device.
        samples: of the training, on the device.
        spec: the recipe.

    Returns:
        The callable to train with, and, if nothing could be compiled, the reason; the callable is
        then the network itself.
    """
    if spec.compile == "none":
        return network, None
    functions = [module for module in network.modules() if isinstance(module, Activation)]
    if spec.compile == "activation" and not functions:
        return network, _told("the network has no activation module of ours to compile")
    torch.compiler.reset()  # forget the previous function
    forward: Callable[..., Any] = network
    for function in functions:
        function.fused = spec.compile == "activation"
    try:
        if spec.compile == "network":
            forward = torch.compile(network)
        _try(forward, network, samples, spec)
    except torch.OutOfMemoryError:
        pass  # not the compiler's fault; training halves the batch
    except Exception as error:  # compilers fail in many ways
        for function in functions:
            function.fused = False
        return network, _told(f"{type(error).__name__}: {error}")
    failed = [function.why_not_fused for function in functions if function.why_not_fused]
    return forward, _told(failed[0]) if spec.compile == "activation" and failed else None


def _told(why: str) -> str:
    note = f"not compiled: {' '.join(why.split())[:300]}"
    warnings.warn(f"training.compile: {note}; training continues uncompiled", stacklevel=3)
    return note


def _try(
    forward: Callable[..., Any], network: nn.Module, samples: Samples, spec: TrainingSpec
) -> None:
    """Run a forward and a backward pass, and undo their effects on the network."""
    count = min(spec.micro_batch or spec.batch_size, spec.batch_size, len(samples))
    batch, targets = samples.take(torch.arange(count, device="cpu"))
    device = targets.device
    if spec.channels_last:
        batch = mapped(batch, channels_last)
    before: dict[str, Any] = on_cpu(dict(network.state_dict()))
    with torch.random.fork_rng(rng_devices(device)):
        network.train()
        with autocast(device, spec.precision):
            outputs = outputs_of(call(forward, batch))
        outputs.float().logsumexp(-1).mean().backward()
    network.load_state_dict(before)
    network.zero_grad(set_to_none=True)
