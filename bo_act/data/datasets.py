"""Reading data sets from their files: the MNISTs, the CIFARs, your own."""

from __future__ import annotations

import contextlib
import gzip
import os
import shutil
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset, IterableDataset, TensorDataset

from bo_act import content
from bo_act.data.reading import as_inputs, as_tensor, without_bytes
from bo_act.data.samples import Inputs, mapped, shown_shape, tensors
from bo_act.data.small_sets import open_small
from bo_act.data.source import Part, Source
from bo_act.errors import DataError
from bo_act.io import expanded
from bo_act.specs import DataSpec
from bo_act.specs.task import SMALL_SETS
from bo_act.user_code.failures import USERS, one_line
from bo_act.user_code.files import load_function

DEBIAN_FOLDER = Path("/usr/share/datasets/fashion-mnist")
"""Where Debian's package dataset-fashion-mnist puts the files."""

IDX = (
    "train-images-idx3-ubyte",
    "train-labels-idx1-ubyte",
    "t10k-images-idx3-ubyte",
    "t10k-labels-idx1-ubyte",
)
FILES = {  # torchvision's folders and files
    "mnist": ("MNIST", "MNIST/raw", IDX),
    "fashion_mnist": ("FashionMNIST", "FashionMNIST/raw", IDX),
    "cifar10": (
        "CIFAR10",
        "cifar-10-batches-py",
        (*(f"data_batch_{part}" for part in range(1, 6)), "test_batch", "batches.meta"),
    ),
    "cifar100": ("CIFAR100", "cifar-100-python", ("train", "test", "meta")),
}


def open_source(spec: DataSpec) -> Source:
    """Find the files of a data set, and return how to read them.

    Raises:
        DataError: files are missing.
    """
    if spec.name in SMALL_SETS:
        return open_small(spec)
    if spec.own:
        read = partial(_own, spec)
        return Source(partial(read, train=True), partial(read, train=False))
    folder = _find(spec)
    official = partial(_official, spec.name, folder)
    classes = 100 if spec.name == "cifar100" else 10
    held_out = 5_000 if spec.name.startswith("cifar") else 10_000
    return Source(
        partial(official, train=True), partial(official, train=False), 255, classes, held_out
    )


# --- torchvision's -----------------------------------------------------------------------------


def data_folder(spec: DataSpec) -> Path:
    """Return the folder of all data sets, each under torchvision's name."""
    return content.cache_dir() / "data" if spec.root is None else expanded(spec.root)


def fetch(spec: DataSpec, target: Path, download: Callable[[str], object], advice: str) -> None:
    """Download a data set into a scratch folder, then move it into place.

    Other processes never see half a file.

    Args:
        spec: the data set.
        target: the new folder, under ``data_folder``.
        download: fetches into a folder, in torchvision's layout.
        advice: for a download by hand.

    Raises:
        DataError: downloads are off, or failed.
    """
    base = data_folder(spec)
    if not spec.download:
        raise DataError(
            f"the files of {spec.name!r} are missing, and data.download is off; {advice}, or set "
            "data.download = true"
        )
    try:
        base.mkdir(parents=True, exist_ok=True)
        # torchvision prints to stdout, which is for results.
        with (
            tempfile.TemporaryDirectory(dir=base) as scratch,
            contextlib.redirect_stdout(sys.stderr),
        ):
            download(scratch)
            fetched = Path(scratch, target.relative_to(base))
            shutil.copytree(fetched, target, dirs_exist_ok=True, copy_function=os.replace)
    except Exception as error:  # torchvision and urllib raise many kinds
        raise DataError(
            f"{spec.name!r} could not be downloaded ({one_line(error)}); {advice}"
        ) from error


def _find(spec: DataSpec) -> Path:
    kind, inside, names = FILES[spec.name]
    base = data_folder(spec)
    target = base / inside
    places = [target, base]
    if spec.name == "fashion_mnist" and spec.root is None:
        places.append(DEBIAN_FOLDER)
    for folder in places:
        if all(_file(folder, name) for name in names):
            return folder
    packed = " (uncompressed or .gz)" if names is IDX else ""
    advice = f"put the files {', '.join(names)}{packed} into {target}"
    if spec.name == "fashion_mnist":
        advice += ", or install the Debian package dataset-fashion-mnist"

    def download(scratch: str) -> None:
        from torchvision import datasets

        getattr(datasets, kind)(scratch, download=True)

    fetch(spec, target, download, advice)
    return target


def _file(folder: Path, name: str) -> Path | None:
    for path in (folder / name, folder / f"{name}.gz"):
        if path.is_file():
            return path
    return None


def _official(name: str, folder: Path, *, train: bool) -> Part:
    """Read a part through torchvision, which verifies its files.

    Links in a scratch folder make up its layout, so the files may be packed or in a read-only
    folder.
    """
    from torchvision import datasets

    kind, inside, names = FILES[name]
    with tempfile.TemporaryDirectory() as scratch:
        layout = Path(scratch, inside)
        layout.mkdir(parents=True)
        try:
            for file in names:
                _place(folder, file, layout, unpack=file.startswith("train") == train)
            content: Any = getattr(datasets, kind)(scratch, train=train)
        except Exception as error:  # torchvision's readers raise many kinds, AssertionError too
            raise DataError(
                f"{folder}: the files of {name!r} are unreadable or not the official ones "
                f"({one_line(error)}); download them again"
            ) from error
    images = torch.as_tensor(content.data, device="cpu")
    images = images.unsqueeze(1) if images.ndim == 3 else images.permute(0, 3, 1, 2)
    labels = torch.as_tensor(content.targets, device="cpu").long()
    if len(labels) != len(images):
        raise DataError(f"{folder}: expected {len(images)} labels, got {len(labels)}")
    return as_images(images, str(folder)), labels


def _place(folder: Path, name: str, layout: Path, *, unpack: bool) -> None:
    path = _file(folder, name)
    if path is None:
        raise FileNotFoundError(f"{name} is missing")
    if path.suffix != ".gz":
        (layout / name).symlink_to(path.resolve())
    elif unpack:
        (layout / name).write_bytes(gzip.decompress(path.read_bytes()))
    else:
        (layout / name).touch()  # torchvision only checks that it exists


# --- one's own -----------------------------------------------------------------------------------


def _own(spec: DataSpec, *, train: bool) -> Part | Dataset[Any]:
    function = spec.name.rpartition(":")[2]
    expected = (
        f"{function}(*, train) that returns inputs (n, ...) and targets (n, ...) of the training "
        "set or, with train = False, of the test set, or a torch Dataset of such pairs"
    )
    _, load = load_function(spec.name, key="data.name", expected=expected, error=DataError)
    which = spec.name if train else f"{spec.name}, with train = False"
    try:
        loaded = load(train=train)
        if isinstance(loaded, TensorDataset):
            *several, targets = loaded.tensors
            loaded = several[0] if len(several) == 1 else tuple(several), targets
        if isinstance(loaded, Dataset):
            if isinstance(loaded, IterableDataset) or not loaded:
                raise TypeError("a Dataset without a length, or empty")
            return loaded
        inputs, targets = loaded
        part = as_inputs(inputs), as_tensor(targets)
    except USERS as error:
        raise DataError(f"{which}: {one_line(error)}; expected {expected}") from error
    counts = {len(tensor) if tensor.ndim and tensor.numel() else 0 for tensor in tensors(part[0])}
    if len(counts) > 1 or counts == {0}:
        raise DataError(
            f"{which}: expected inputs with the same number of samples, at least one, got the "
            "shapes "
            f"{shown_shape(part[0])}"
        )
    if looks_like_images(part[0]):
        return part
    return mapped(part[0], without_bytes), part[1]


def looks_like_images(inputs: Inputs) -> bool:
    """Tell whether inputs are square images (n, c, h, w)."""
    return (
        isinstance(inputs, Tensor)
        and inputs.ndim == 4
        and inputs.shape[2] == inputs.shape[3]
        and not inputs.is_complex()
    )


def as_images(images: Tensor, where: str) -> Tensor:
    """Return images as bytes or numbers from 0 to 1.

    Raises:
        DataError: they are something else; the message begins with ``where``.
    """
    if images.dtype != torch.uint8 and not bool(((images >= 0) & (images <= 1)).all()):
        unknown = int((~images.isfinite()).sum())
        came = f"{unknown} not finite" if unknown else f"{images.min():.4g} to {images.max():.4g}"
        raise DataError(
            f"{where}: expected images as uint8, or as numbers from 0 to 1, got {came}; to take "
            'any numbers as they are, set data.standardize = "none"'
        )
    return images.contiguous()
