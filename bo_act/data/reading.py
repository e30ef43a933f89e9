"""Your own ``Dataset``: samples read by worker processes as needed.

Its random numbers for a sample depend on (seed, epoch, index), but not on the number of workers.
"""

from __future__ import annotations

import hashlib
import multiprocessing
import random
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from bo_act.data.augmentation import seed_of
from bo_act.data.samples import Inputs, mapped, tensors
from bo_act.errors import DataError
from bo_act.user_code.failures import USERS, is_machines, one_line

_LOOKED_AT = 32  # samples in the digest, besides all targets


def batches(
    reader: Dataset[Any],
    order: Tensor,
    *,
    batch_size: int,
    workers: int,
    device: torch.device,
) -> Iterator[tuple[Inputs, Tensor]]:
    """Yield batches from a reader, read ahead if there are workers.

    Args:
        reader: returns the inputs of one sample by index, or the text of an error.
        order: (m,) int64 indices, on the CPU.
        batch_size: samples at a time.
        workers: reading processes.
        device: of the returned inputs.

    Returns:
        inputs, and the (b,) indices on the CPU.

    Raises:
        DataError: a sample cannot be read.
    """
    # A daemon, such as a worker of `bench build`, may not start processes.
    workers = 0 if multiprocessing.current_process().daemon else workers
    loader: DataLoader[Any] = DataLoader(
        reader,
        batch_size=batch_size,
        sampler=order.tolist(),
        num_workers=workers,
        collate_fn=together,
        pin_memory=device.type == "cuda",
        generator=torch.Generator().manual_seed(0),  # leaves torch's global generator alone
    )
    for inputs, chosen in zip(loader, order.split(batch_size), strict=True):
        if isinstance(inputs, str):
            raise DataError(inputs)
        yield mapped(inputs, lambda tensor: tensor.to(device, non_blocking=True)), chosen


def together(samples: Sequence[Any]) -> Inputs | str:
    """Return a batch, or the error of the first unreadable sample."""
    unreadable = next((sample for sample in samples if isinstance(sample, str)), None)
    if unreadable is not None:
        return unreadable
    first = samples[0]
    try:
        if isinstance(first, Mapping):
            return {name: torch.stack([sample[name] for sample in samples]) for name in first}
        if isinstance(first, tuple):
            return tuple(map(torch.stack, zip(*samples, strict=True)))
        return torch.stack(list(samples))
    except (RuntimeError, KeyError, ValueError) as error:
        return (
            "expected samples of equal shape, to form batches; pad or crop them in the data set: "
            f"{one_line(error)}"
        )


def as_tensor(content: Any) -> Tensor:
    """Return an array, a tensor on any device, or a list as a tensor on the CPU."""
    tensor = (
        torch.as_tensor(content, device=None if isinstance(content, Tensor) else "cpu")
        .detach()
        .cpu()
    )
    return tensor if tensor.layout == torch.strided else tensor.to_dense()


def as_input(content: Any) -> Tensor:
    """Return numbers as float32 or int64; bool and bytes stay."""
    values = as_tensor(content)
    if values.is_floating_point():
        return values.float()
    stays = values.is_complex() or values.dtype in (torch.bool, torch.uint8)
    return values if stays else values.long()


def without_bytes(values: Tensor) -> Tensor:
    """Return bytes that are not images as int64."""
    return values.long() if values.dtype == torch.uint8 else values


def as_inputs(content: Any) -> Inputs:
    """Return inputs of any form as tensors: one, several by name, or several in order.

    Raises:
        ValueError, TypeError, RuntimeError: they have another form.
    """
    if isinstance(content, Mapping) or hasattr(content, "keys"):
        inputs = {str(name): as_input(content[name]) for name in content.keys()}  # noqa: SIM118
        if not inputs:
            raise ValueError("the inputs are an empty dict")
        return inputs
    if isinstance(content, tuple):
        if not content:
            raise ValueError("the inputs are an empty tuple")
        return tuple(map(as_input, content))
    return as_input(content)


@dataclass(frozen=True, eq=False)
class DatasetSamples:
    """Samples of a ``torch.utils.data.Dataset``; see ``Samples``.

    Attributes:
        dataset: of pairs (inputs, target).
        indices: (n,) int64, of these items, on the CPU.
        targets: (n, ...), on the device of the batches.
        workers: reading processes.
        where: the data set's name, for errors.
    """

    dataset: Dataset[Any] = field(repr=False)
    indices: Tensor = field(repr=False)
    targets: Tensor = field(repr=False)
    workers: int
    where: str

    def __len__(self) -> int:
        return len(self.targets)

    def to(self, device: torch.device | str) -> DatasetSamples:
        """Return the same samples, with batches on a device."""
        return replace(self, targets=self.targets.to(device))

    def take(self, indices: Tensor) -> tuple[Inputs, Tensor]:
        """Return some samples as in validation."""
        reader = _Reader(self.dataset, self.where, None)
        inputs = together([reader[index] for index in self.indices[indices.cpu()].tolist()])
        if isinstance(inputs, str):
            raise DataError(inputs)
        device = self.targets.device
        return mapped(inputs, lambda tensor: tensor.to(device)), self.targets[indices.to(device)]

    def batches(
        self,
        batch_size: int,
        *,
        order: Tensor | None = None,
        draw: tuple[int, int] | None = None,
    ) -> Iterator[tuple[Inputs, Tensor]]:
        """Yield batches of samples, read ahead by the workers."""
        device = self.targets.device
        order = torch.arange(len(self), device="cpu") if order is None else order.cpu()
        read = batches(
            _Reader(self.dataset, self.where, draw),
            self.indices[order],
            batch_size=batch_size,
            workers=self.workers,
            device=device,
        )
        for (inputs, _), chosen in zip(read, order.split(batch_size), strict=True):
            yield inputs, self.targets[chosen.to(device)]

    def digest(self) -> str:
        """Return the sha256 of the targets and of some samples across the set."""
        places = torch.linspace(0, len(self) - 1, min(_LOOKED_AT, len(self)), device="cpu",
                                dtype=torch.float64).long()  # fmt: skip
        inputs, _ = self.take(places)
        digest = hashlib.sha256(repr((len(self), tuple(self.targets.shape))).encode())
        for tensor in (*tensors(inputs), self.targets.cpu()):
            digest.update(tensor.contiguous().numpy().data)
        return digest.hexdigest()


class _Reader(Dataset[Any]):
    """Reads the inputs of one item at a time, in any process."""

    def __init__(self, dataset: Dataset[Any], where: str, draw: tuple[int, int] | None) -> None:
        self.dataset, self.where = dataset, where
        self.draw = (0, 0) if draw is None else draw

    def __len__(self) -> int:
        return len(self.dataset)  # type: ignore[arg-type]

    def __getitem__(self, index: int) -> Inputs | str:
        # Returned, not raised: a loader adds its own traceback to its workers' errors.
        try:
            with _seeded(seed_of(*self.draw, index)):
                return item(self.dataset, index, self.where)[0]
        except DataError as error:
            return str(error)


def item(dataset: Dataset[Any], index: int, where: str) -> tuple[Inputs, Tensor]:
    """Return the inputs and the target of an item.

    Raises:
        DataError: the item is not such a pair.
    """
    try:
        pair = dataset[index]
        if not isinstance(pair, tuple | list) or len(pair) != 2:
            came = f"{len(pair)} of them" if isinstance(pair, tuple | list) else type(pair)
            raise TypeError(f"expected a pair of inputs and target, got {came}")
        inputs = mapped(as_inputs(pair[0]), lambda x: x.long() if x.dtype == torch.uint8 else x)
        return inputs, as_tensor(pair[1])
    except USERS as error:
        if is_machines(error):
            raise
        raise DataError(
            f"{where}: item {index} of its Dataset cannot be read: {one_line(error)}"
        ) from error


def targets_of(dataset: Dataset[Any], where: str) -> Tensor:
    """Return the targets of all items, from an attribute of the set or by reading all once.

    Raises:
        DataError: an item cannot be read, or the targets do not fit together.
    """
    count = len(dataset)  # type: ignore[arg-type]
    known = getattr(dataset, "targets", None)
    if known is not None and getattr(dataset, "target_transform", None) is None:
        try:
            targets = as_tensor(known)
            if targets.ndim and len(targets) == count:
                return targets
        except (TypeError, ValueError, RuntimeError):
            pass  # something else of that name
    read = []
    for index in range(count):
        with _seeded(seed_of(0, 0, index)):
            read.append(item(dataset, index, where)[1])
    try:
        return torch.stack(read)
    except RuntimeError as error:
        raise DataError(f"{where}: expected targets of equal shape, {one_line(error)}") from error


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Seed all random generators inside, and restore them afterwards."""
    before = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        random.seed(seed)
        np.random.seed(seed % 2**32)
        try:
            yield
        finally:
            random.setstate(before[0])
            np.random.set_state(before[1])
