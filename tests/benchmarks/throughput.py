"""Images per second of the trainer beside a bare loop, and candidates per hour of several at once.

The bare loop is what PyTorch's tutorials write for the same network and recipe, without any of
what the trainer does besides: no checkpoint, no look at the loss, no options. Both take turns on
the same network and images, and the ratio is of the pairs.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from functools import partial

import torch
import torch.multiprocessing as processes
from torch import nn
from torch.nn import functional

from bo_act.data.loading import Data, load_data
from bo_act.networks import load_network
from bo_act.specs import DataSpec, ModelSpec, TrainingSpec
from bo_act.training.optimization import autocast, learning_rate
from bo_act.training.trainer import pick_device, train


def bare(network: nn.Module, data: Data, spec: TrainingSpec) -> None:
    """Train and validate as the recipe says, with nothing besides."""
    device = pick_device(spec.device)
    network.to(device)
    train_set, validation = data.train.to(device), data.validation.to(device)
    images, labels = train_set.take(torch.arange(len(train_set)))
    val_images, val_labels = validation.take(torch.arange(len(validation)))
    optimizer = torch.optim.SGD(
        network.parameters(), lr=spec.learning_rate, momentum=spec.momentum, nesterov=True
    )
    steps = len(images) // spec.batch_size
    for epoch in range(spec.epochs):
        order = torch.randperm(len(images)).to(device)
        network.train()
        for step in range(steps):
            chosen = order[step * spec.batch_size : (step + 1) * spec.batch_size]
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(
                    spec, step=epoch * steps + step, steps=spec.epochs * steps
                )
            with autocast(device, spec.precision):
                logits = network(images[chosen])
            loss = functional.cross_entropy(logits.float(), labels[chosen])
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
        network.eval()
        right = 0
        with torch.no_grad(), autocast(device, spec.precision):
            for at in range(0, len(val_images), 512):
                found = network(val_images[at : at + 512]).argmax(1)
                right += int((found == val_labels[at : at + 512]).sum())


def candidate(number: int, *, model: ModelSpec, data_spec: DataSpec, spec: TrainingSpec) -> None:
    """Train one candidate, in a process of its own."""
    torch.set_num_threads(spec.threads or 1)
    data = load_data(data_spec)
    train(build(model, data, number), data, spec, seed=number)


def build(model: ModelSpec, data: Data, seed: int) -> nn.Module:
    """Return the untrained network with GELU."""
    return load_network(model)(
        nn.GELU,
        in_channels=data.facts["in_channels"],
        image_size=data.facts["image_size"],
        num_classes=data.num_classes,
        seed=seed,
    )


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--model", default="small_cnn")
    parser.add_argument("--data", default="digits")
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--at-once", type=int, nargs="*", default=[], help="e.g. 1 2 4 8")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    model, data_spec = ModelSpec(name=arguments.model), DataSpec(name=arguments.data)
    data = load_data(data_spec)
    spec = TrainingSpec(
        epochs=arguments.epochs,
        batch_size=arguments.batch_size,
        device=arguments.device,
        threads=arguments.threads,
    )
    images = spec.epochs * (len(data.train) // spec.batch_size) * spec.batch_size
    seconds: dict[str, list[float]] = {"trainer": [], "bare": []}
    ways = {
        "trainer": lambda network: train(network, data, spec, seed=0),
        "bare": lambda network: bare(network, data, spec),
    }
    for turn in range(arguments.rounds + 1):
        order = list(ways) if turn % 2 else list(reversed(ways))
        for name in order:
            network = build(model, data, turn)
            started = time.perf_counter()
            ways[name](network)
            if turn:  # the first pair loads libraries
                seconds[name].append(time.perf_counter() - started)
    ratios = [b / t for t, b in zip(seconds["trainer"], seconds["bare"], strict=True)]
    found = {
        "device": str(pick_device(spec.device)),
        "model": arguments.model,
        "images_per_second": {k: images / statistics.median(v) for k, v in seconds.items()},
        "ratio": statistics.median(ratios),
        "ratios": sorted(ratios),
        "candidates_per_hour": {},
    }
    for count in arguments.at_once:
        work = partial(candidate, model=model, data_spec=data_spec, spec=spec)
        with processes.get_context("spawn").Pool(count) as pool:
            pool.map(work, range(count), chunksize=1)  # libraries are loaded
            started = time.perf_counter()
            pool.map(work, range(4 * count), chunksize=1)
            found["candidates_per_hour"][count] = 3600 * 4 * count / (time.perf_counter() - started)
    if arguments.json:
        print(json.dumps(found, indent=2))
        return
    rates = found["images_per_second"]
    print(f"{arguments.model} on {found['device']}, {arguments.threads} threads a process")
    print(f"trainer {rates['trainer']:,.0f} images/s, bare loop {rates['bare']:,.0f}")
    print(
        f"ratio {found['ratio']:.3f} (median of {len(ratios)} pairs, "
        f"{min(ratios):.3f} to {max(ratios):.3f})"
    )
    for count, rate in found["candidates_per_hour"].items():
        print(f"{count} at once: {rate:,.0f} candidates/h")


if __name__ == "__main__":
    main()
