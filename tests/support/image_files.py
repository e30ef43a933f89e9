"""Small files of the very form of the published data sets."""

from __future__ import annotations

import gzip
import hashlib
import pickle
from pathlib import Path

import numpy as np
import torch
from PIL import Image


def write_idx(folder: Path, *, packed: bool) -> None:
    """Write 200 training and 40 test images as MNIST and Fashion-MNIST have them."""
    folder.mkdir(parents=True, exist_ok=True)
    generator = torch.Generator().manual_seed(0)
    for part, count in (("train", 200), ("t10k", 40)):
        labels = (torch.arange(count) % 10).to(torch.uint8)
        noise = torch.randint(0, 56, (count, 28, 28), generator=generator)
        images = (labels.view(-1, 1, 1) * 20 + noise).to(torch.uint8)
        for name, values in (("images-idx3", images), ("labels-idx1", labels)):
            content = bytes((0, 0, 8, values.ndim))
            content += b"".join(length.to_bytes(4, "big") for length in values.shape)
            content += values.numpy().tobytes()
            path = folder / f"{part}-{name}-ubyte"
            if packed:
                path.with_name(path.name + ".gz").write_bytes(gzip.compress(content))
            else:
                path.write_bytes(content)


def write_cifar(root: Path, monkeypatch, *, classes: int) -> np.ndarray:
    """Write the CIFAR archives' files; return the training images (n, 3, 32, 32).

    torchvision compares the files with the published checksums, so its list of them is replaced by
    that of these files; all else that it does is done.
    """
    from torchvision import datasets

    kind = getattr(datasets, f"CIFAR{classes}")
    folder = root / kind.base_folder
    folder.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(0)
    written = []
    key = "labels" if classes == 10 else "fine_labels"
    sums = {}
    for name, _ in [*kind.train_list, *kind.test_list]:
        images = random.integers(0, 256, (2 * classes, 3072), dtype=np.uint8)
        content = {"data": images, key: [index % classes for index in range(2 * classes)]}
        (folder / name).write_bytes(pickle.dumps(content))
        sums[name] = hashlib.md5((folder / name).read_bytes()).hexdigest()
        if [name, _] in kind.train_list:
            written.append(images)
    meta = kind.meta["filename"]
    (folder / meta).write_bytes(pickle.dumps({kind.meta["key"]: [str(n) for n in range(classes)]}))
    md5 = hashlib.md5((folder / meta).read_bytes()).hexdigest()
    for name in ("train_list", "test_list"):
        monkeypatch.setattr(kind, name, [[file, sums[file]] for file, _ in getattr(kind, name)])
    monkeypatch.setattr(kind, "meta", kind.meta | {"md5": md5})
    return np.concatenate(written).reshape(-1, 3, 32, 32)


def write_folders(root: Path, *, classes: int = 3, each: int = 12, ending: str = "JPEG") -> None:
    """Write images of noise, brighter from class to class, in train and val."""
    random = np.random.default_rng(0)
    for part, count in (("train", each), ("val", 4)):
        for label in range(classes):
            folder = root / part / f"n{label:08}"
            folder.mkdir(parents=True)
            for number in range(count):
                pixels = random.integers(0, 60, (40, 48, 3), dtype=np.uint8) + 80 * label
                Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{number}.{ending}")
