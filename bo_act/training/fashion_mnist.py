"""The files of Fashion-MNIST: where they are, how they get there, and how they are read.

Source: Xiao, Rasul and Vollgraf 2017, https://github.com/zalandoresearch/fashion-mnist. The files
have the idx form of MNIST, http://yann.lecun.com/exdb/mnist.
"""

from __future__ import annotations

import contextlib
import gzip
import shutil
import sys
import tempfile
import zlib
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from bo_act.errors import DataError
from bo_act.library import cache_dir

FILES = (
    "train-images-idx3-ubyte",
    "train-labels-idx1-ubyte",
    "t10k-images-idx3-ubyte",
    "t10k-labels-idx1-ubyte",
)
CLASSES = 10
DEBIAN_FOLDER = Path("/usr/share/datasets/fashion-mnist")
"""Where Debian's package dataset-fashion-mnist puts the files."""


def files_folder(root: Path | None, *, download: bool) -> Path:
    """Return the folder that holds the four files, downloading them if they are nowhere.

    Args:
        root: folder that holds ``FashionMNIST/raw`` (torchvision's layout) or the files
            themselves; default: ``data`` in the cache folder, then the folder of Debian's package.
        download: whether missing files may be fetched into ``root``.

    Raises:
        DataError: the files are missing and were not, or could not be, downloaded.
    """
    base = cache_dir() / "data" if root is None else root.expanduser()
    target = base / "FashionMNIST" / "raw"
    for folder in (target, DEBIAN_FOLDER if root is None else base):
        if all(_file(folder, name) for name in FILES):
            return folder
    if not download:
        raise DataError(f"Fashion-MNIST is missing and download is off; {_advice(target)}")
    try:
        _download(target)
    except Exception as error:  # torchvision and urllib raise many kinds
        cause = " ".join(str(error).split())
        raise DataError(
            f"Fashion-MNIST could not be downloaded ({type(error).__name__}: {cause}); "
            f"{_advice(target)}"
        ) from error
    return target


def read(folder: Path, part: Literal["train", "t10k"]) -> tuple[Tensor, Tensor]:
    """Read the training or the test images.

    Returns:
        images (n, 1, h, w) uint8, and labels (n,) int64.

    Raises:
        DataError: a file is damaged.
    """
    images = _read_idx(folder, f"{part}-images-idx3-ubyte", dimensions=3)
    labels = _read_idx(folder, f"{part}-labels-idx1-ubyte", dimensions=1)
    if len(images) != len(labels) or len(labels) == 0:
        raise DataError(
            f"{folder}: expected as many {part} labels as images and at least one, "
            f"got {len(labels)} labels and {len(images)} images; fetch the files again"
        )
    if images.shape[1] != images.shape[2] or int(labels.max()) >= CLASSES:
        raise DataError(
            f"{folder}: expected square {part} images with labels 0 to {CLASSES - 1}, got "
            f"{images.shape[1]} x {images.shape[2]} and labels up to {int(labels.max())}"
        )
    return images.unsqueeze(1), labels.long()


def _file(folder: Path, name: str) -> Path | None:
    for path in (folder / name, folder / f"{name}.gz"):
        if path.is_file():
            return path
    return None


def _advice(folder: Path) -> str:
    return (
        f"put the files {', '.join(FILES)} (each as it is or as .gz) into {folder}, "
        f"or install the Debian package dataset-fashion-mnist"
    )


def _download(target: Path) -> None:
    from torchvision.datasets import FashionMNIST

    target.mkdir(parents=True, exist_ok=True)
    # Into a folder of our own first: another process must never see half a file. torchvision
    # prints to stdout, which is kept for results.
    with (
        tempfile.TemporaryDirectory(dir=target) as scratch,
        contextlib.redirect_stdout(sys.stderr),
    ):
        FashionMNIST(scratch, download=True)
        for name in FILES:
            shutil.move(Path(scratch, "FashionMNIST", "raw", name), target / name)


def _read_idx(folder: Path, name: str, *, dimensions: int) -> Tensor:
    path = _file(folder, name)
    if path is None:
        raise DataError(f"Fashion-MNIST: {name} is missing; {_advice(folder)}")
    try:
        content = path.read_bytes()
        if path.suffix == ".gz":
            content = gzip.decompress(content)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path}: cannot be read: {error}; fetch the file again") from error
    # Two zero bytes, 8 for unsigned bytes, the number of dimensions; then each dimension's size.
    start = 4 + 4 * dimensions
    shape = np.frombuffer(content[4:start], dtype=">u4").tolist() if len(content) >= start else []
    if content[:4] != bytes((0, 0, 8, dimensions)) or len(content) != start + int(np.prod(shape)):
        raise DataError(
            f"{path}: expected an idx file of unsigned bytes in {dimensions} dimensions, got "
            f"{len(content)} bytes that are not one; fetch the file again"
        )
    values = np.frombuffer(content, dtype=np.uint8, offset=start).reshape(shape)
    return torch.from_numpy(values.copy())
