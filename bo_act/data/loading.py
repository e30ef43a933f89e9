"""Data sets, split into training, validation and test samples.

All choices, tuning and comparisons use validation samples. Only ``Data.load_test()`` loads test
samples, once, at the very end.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, cast

import torch
from torch import Tensor
from torch.utils.data import Dataset

from bo_act.data.augmentation import Augmentation
from bo_act.data.data import Data, facts_of
from bo_act.data.datasets import looks_like_images, open_source
from bo_act.data.in_memory import fitted, side_of
from bo_act.data.reading import DatasetSamples, targets_of
from bo_act.data.samples import Inputs, Samples, SampleSet, mapped, rows, shown_shape, tensors
from bo_act.data.source import Part, Source
from bo_act.data.split import split
from bo_act.data.targets import LOSSES, Kind, LossName, as_targets, is_tokens
from bo_act.errors import DataError
from bo_act.specs import AugmentationSpec, DataSpec

__all__ = ["Data", "load_data"]


def load_data(
    spec: DataSpec,
    augmentation: AugmentationSpec | None = None,
    *,
    loss: LossName = "auto",
) -> Data:
    """Load a data set and split it; the same spec always gives the same split.

    The official test or validation images of a data set are the test images. Validation samples are
    held out of the others: by default 300 of ``digits``, 10,000 of the MNISTs, 5,000 of the
    CIFARs, and else a tenth, stratified by class if there are classes.

    Args:
        spec: of the data set.
        augmentation: of training images, or None.
        loss: of the training, which decides the kind of targets; ``auto`` decides by dtype.

    Raises:
        DataError: files are missing or damaged, or the split or the image size is impossible.
    """
    augmentation = augmentation or AugmentationSpec()
    if spec.context is not None and spec.name != "python_topics":
        raise DataError(f"data.context is for text, but {spec.name!r} is not text; leave it out")
    if spec.in_folders:
        return _of_folders(spec, augmentation, loss)
    source = open_source(spec)
    part = source.train()
    if isinstance(part, Dataset):
        if augmentation != AugmentationSpec():
            raise DataError(
                f"augmentation: {spec.name!r} is a Dataset, which must augment by itself; leave "
                "it out"
            )
        return _of_dataset(spec, source, part, loss)
    return _in_memory(spec, augmentation, source, part, loss)


# --- in folders, and in a Dataset ---------------------------------------------------------------


def _of_folders(spec: DataSpec, augmentation: AugmentationSpec, loss: LossName) -> Data:
    from bo_act.data.folders import load_folders

    if loss not in ("auto", "cross_entropy"):
        raise DataError(f"training.loss = {loss!r} does not fit the classes of {spec.name!r}")
    if spec.standardize != "auto":
        raise DataError("data.standardize: images in folders are always normalized; leave it out")
    folders = load_folders(spec, augmentation)
    side = folders.train.side
    inputs = torch.zeros(1, 3, side, side, device="cpu", dtype=torch.float32)
    return Data(
        name=spec.name,
        train=folders.train,
        validation=folders.validation,
        facts=facts_of(
            inputs,
            folders.train.targets,
            "classes",
            classes=folders.num_classes,
            side=side,
        ),
        digest=folders.digest,
        test_loader=folders.load_test,
    )


def _of_dataset(spec: DataSpec, source: Source, dataset: Dataset[Any], loss: LossName) -> Data:
    if spec.image_size is not None or spec.standardize not in ("auto", "none"):
        key = "image_size" if spec.image_size is not None else "standardize"
        raise DataError(
            f"data.{key}: {spec.name!r} is a Dataset, which must do this itself; leave it out"
        )
    samples, kind = _whole(dataset, spec, loss, spec.name)
    inputs, _ = samples.take(torch.arange(min(2, len(samples)), device="cpu"))
    side = cast(Tensor, inputs).shape[-1] if looks_like_images(inputs) else None
    facts = facts_of(inputs, samples.targets, kind, classes=None, side=side)
    rest, validation = _split(spec, source, samples.targets, kind, facts)

    form = _form(inputs, samples.targets)

    def part(chosen: Tensor) -> DatasetSamples:
        return replace(samples, indices=chosen, targets=samples.targets[chosen])

    def load_test() -> Samples:
        dataset, where = source.test(), _of_test(spec)
        if not isinstance(dataset, Dataset):
            raise DataError(f"{where}: expected a Dataset, as with train = True")
        test, _ = _whole(dataset, spec, LOSSES[kind][0], where)
        first, _ = test.take(torch.zeros(1, device="cpu", dtype=torch.int64))
        _check_test(where, facts, form, first, test.targets)
        return test

    train, held_out = part(rest), part(validation)
    digest = hashlib.sha256((train.digest() + held_out.digest()).encode()).hexdigest()
    return Data(spec.name, train, held_out, facts, digest, kind, load_test)


def _whole(
    dataset: Dataset[Any], spec: DataSpec, loss: LossName, where: str
) -> tuple[DatasetSamples, Kind]:
    """Return all samples of a Dataset, and the kind of their targets."""
    raw = targets_of(dataset, where)
    every = torch.arange(len(raw), device="cpu")
    samples = DatasetSamples(dataset, every, raw, spec.workers, where)
    first, _ = samples.take(every[:1])
    shape = (len(raw), *tensors(first)[0].shape[1:]) if is_tokens(first) else None
    targets, kind = as_targets(raw, loss, tokens=shape, count=len(raw), where=where)
    return replace(samples, targets=targets), kind


# --- in memory --------------------------------------------------------------------------------


def _in_memory(
    spec: DataSpec,
    augmentation: AugmentationSpec,
    source: Source,
    part: Part,
    loss: LossName,
) -> Data:
    inputs, targets, kind = _with_targets(part, loss, spec.name)
    side = side_of(spec, inputs)
    facts = facts_of(inputs, targets, kind, classes=source.classes, side=side)
    rest, validation = _split(spec, source, targets, kind, facts)
    changes = _augmentation(spec, augmentation, side, kind, facts)
    train = rows(inputs, rest), targets[rest]
    transform = fitted(spec, source, *train, side=side, kind=kind)
    sets = (
        transform(*train, spec.name),
        transform(rows(inputs, validation), targets[validation], spec.name),
    )
    form = _form(inputs, targets)  # not the set itself, to free its memory

    def load_test() -> SampleSet:
        part, where = source.test(), _of_test(spec)
        if isinstance(part, Dataset):
            raise DataError(f"{where}: expected tensors, as with train = True, got a Dataset")
        test_inputs, test_targets, _ = _with_targets(part, LOSSES[kind][0], where)
        _check_test(where, facts, form, test_inputs, test_targets)
        return transform(test_inputs, test_targets, where)

    return Data(
        name=spec.name,
        train=replace(sets[0], augmentation=changes),
        validation=sets[1],
        facts=facts,
        digest=_digest(*sets),
        kind=kind,
        test_loader=load_test,
    )


def _with_targets(part: Part, loss: LossName, where: str) -> tuple[Inputs, Tensor, Kind]:
    inputs, targets = part
    first = tensors(inputs)[0]
    shape = tuple(first.shape) if is_tokens(inputs) else None
    targets, kind = as_targets(targets, loss, tokens=shape, count=len(first), where=where)
    return inputs, targets, kind


def _augmentation(
    spec: DataSpec,
    augmentation: AugmentationSpec,
    side: int | None,
    kind: Kind,
    facts: Mapping[str, Any],
) -> Augmentation | None:
    if augmentation == AugmentationSpec():
        return None
    if side is None or kind != "classes":
        what = "square images (n, c, h, w)" if side is None else "images with classes"
        raise DataError(f"augmentation needs {what}, but {spec.name!r} has none; leave it out")
    if augmentation.shift >= side:
        raise DataError(
            f"augmentation.shift: expected less than the {side} pixels of the images, "
            f"got {augmentation.shift}"
        )
    return Augmentation(augmentation, facts["num_classes"])


# --- of all --------------------------------------------------------------------------------


def _split(
    spec: DataSpec, source: Source, targets: Tensor, kind: Kind, facts: Mapping[str, Any]
) -> tuple[Tensor, Tensor]:
    what = "images" if "in_channels" in facts else "samples"
    count = len(targets)
    if kind == "classes" and facts["num_classes"] > count:
        raise DataError(
            f"{spec.name}: expected labels from 0 to the number of classes, got one of "
            f"{facts['num_classes'] - 1} among {count} {what}"
        )
    return split(
        targets,
        spec,
        source.validation or count // 10,
        what=what,
        stratified=kind == "classes",
        in_order=source.in_order,
    )


def _of_test(spec: DataSpec) -> str:
    return f"{spec.name}, with train = False"


def _check_test(
    where: str, facts: Mapping[str, Any], form: Form, inputs: Inputs, targets: Tensor
) -> None:
    """Refuse test samples with another form or other classes than the training samples."""
    what = "images" if "in_channels" in facts else "samples"
    test_form = _form(inputs, targets)
    for expected, came in zip(form, test_form, strict=True):
        if expected != came:
            raise DataError(
                f"{where}: expected test {what} of shape {expected}, as in training, got {came}"
            )
    looked_at = [("labels", "classes", facts.get("num_classes"), targets)]
    if "vocabulary" in facts:
        looked_at = [
            ("tokens", "tokens", facts["vocabulary"], tensor)
            for tensor in (*tensors(inputs), targets)
            if is_tokens(tensor)
        ]
    for name, kinds, most, tensor in looked_at:
        if most is not None and tensor.numel() and int(tensor.max()) >= most:
            raise DataError(
                f"{where}: expected test {name} among the {most} {kinds} of the training {what}, "
                f"from 0, got {int(tensor.max())}"
            )


Form = tuple[str, str]
"""Shapes of inputs and targets of one sample, as people read them."""


def _form(inputs: Inputs, targets: Tensor) -> Form:
    def of_sample(tensor: Tensor) -> Tensor:
        return tensor.new_empty(()).expand(tensor.shape[1:])

    return shown_shape(mapped(inputs, of_sample)), shown_shape(of_sample(targets))


def _digest(*sets: SampleSet) -> str:
    digest = hashlib.sha256()
    for samples in sets:
        if isinstance(samples.inputs, Mapping):
            digest.update(repr([*samples.inputs]).encode())
        for tensor in (*tensors(samples.inputs), samples.targets):
            if tensor is not samples.targets or tensor.ndim > 1:
                digest.update(repr(tuple(tensor.shape)).encode())
            digest.update(tensor.contiguous().numpy().data)
    return digest.hexdigest()
