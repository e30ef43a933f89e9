"""Large data sets: images in folders, one per class, read by worker processes as needed.

System files are ignored: names with a leading dot (``.ipynb_checkpoints``, ``.DS_Store``,
``._0001.jpg``), system folders (``__MACOSX``), and files with other endings.

The worker that reads an image draws its augmentation for (seed, epoch, index), so it does not
depend on the number of workers. Training images are cropped and scaled at random, others are
scaled and cropped in the middle, as usual for ImageNet.
"""

from __future__ import annotations

import hashlib
import os
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from bo_act.data.augmentation import mix, seed_of
from bo_act.data.datasets import data_folder, fetch
from bo_act.data.reading import batches
from bo_act.data.split import split
from bo_act.errors import DataError
from bo_act.specs import AugmentationSpec, DataSpec

SIDES = range(8, 1025)
DEFAULT_SIDE = {"imagenette": 160, "imagenet": 224, "folder": 224}
MIDDLE = 0.875
"""Share of the shorter side that is in the middle crop: 224 of 256 pixels for ImageNet."""
MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Of ImageNet's red, green and blue in [0, 1], as torchvision's documentation has them."""
ENDINGS = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")
_OF_SYSTEMS = frozenset(
    {"__MACOSX", "__pycache__", "@eaDir", "$RECYCLE.BIN", "System Volume Information", "lost+found"}
)
_LONGEST = 64  # ratio of the sides: a longer image would be scaled to a huge one


@dataclass(frozen=True, eq=False)
class FolderImages:
    """Images in files; see ``bo_act.data.samples.Samples``.

    Attributes:
        paths: of n files.
        targets: classes, (n,) int64, on the device of the batches.
        num_classes: of the labels.
        side: height and width in pixels after scaling.
        augmentation: of training batches.
        workers: reading processes.
    """

    paths: Sequence[str] = field(repr=False)
    targets: Tensor = field(repr=False)
    num_classes: int
    side: int
    augmentation: AugmentationSpec
    workers: int

    def __len__(self) -> int:
        return len(self.paths)

    def to(self, device: torch.device | str) -> FolderImages:
        """Return the same images, with batches on a device."""
        return replace(self, targets=self.targets.to(device))

    def take(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        """Return some images without augmentation, and their labels."""
        plain = _Files(self, None)
        images = torch.stack([plain.read(index) for index in indices.tolist()])
        return images.to(self.targets.device), self.targets[indices.to(self.targets.device)]

    def batches(
        self,
        batch_size: int,
        *,
        order: Tensor | None = None,
        draw: tuple[int, int] | None = None,
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield batches of images, read ahead by the workers."""
        device = self.targets.device
        order = torch.arange(len(self), device="cpu") if order is None else order.cpu()
        read = batches(
            _Files(self, draw),
            order,
            batch_size=batch_size,
            workers=self.workers,
            device=device,
        )
        for batch, chosen in read:
            labels = self.targets[chosen.to(device)]
            if draw is None:
                yield cast(Tensor, batch), labels
            else:
                key = (*draw, int(chosen[0]))
                yield mix(cast(Tensor, batch), labels, self.augmentation, self.num_classes, key)


class _Files(torch.utils.data.Dataset["Tensor | str"]):
    """Reads one image at a time, in any process."""

    def __init__(self, images: FolderImages, draw: tuple[int, int] | None) -> None:
        self.paths = images.paths
        self.draw = draw
        self.transform = _transform(images.side, None if draw is None else images.augmentation)

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> Tensor | str:
        # Returned, not raised: a loader adds its own traceback to its workers' errors.
        try:
            return self.read(index)
        except DataError as error:
            return str(error)

    def read(self, index: int) -> Tensor:
        """Return an image.

        Raises:
            DataError: it is damaged.
        """
        image = read_image(self.paths[index])
        if self.draw is None:
            return self._as_tensor(image)
        with torch.random.fork_rng(devices=[]):  # torchvision uses torch's global generator
            torch.manual_seed(seed_of(*self.draw, index))
            return self._as_tensor(image)

    def _as_tensor(self, image: Any) -> Tensor:
        tensor: Tensor = self.transform(image)
        return tensor


def read_image(path: str) -> Any:
    """Return the (first) image of a file, in red, green and blue.

    Raises:
        DataError: it is damaged, too large, or has numbers without a known range.
    """
    from PIL import Image

    try:
        with warnings.catch_warnings(), Image.open(path) as image:
            # Large images below Pillow's limit, and odd metadata.
            warnings.simplefilter("ignore")
            short, long = sorted(image.size)
            if long > _LONGEST * short:
                raise ValueError(f"its sides are {short} and {long} pixels")
            if image.mode == "F":
                raise ValueError("its pixels are floating-point numbers without a known range")
            if image.mode.startswith("I"):  # 16 bits per pixel, which Pillow would clip at 255
                pixels = np.asarray(image).astype(np.int64).clip(0, 65_535)
                return Image.fromarray((pixels // 257).astype(np.uint8)).convert("RGB")
            return image.convert("RGB")
    except Exception as error:  # Pillow's readers raise many kinds
        cause = " ".join(str(error).split()).replace(repr(path), "it")
        raise DataError(
            f"{path}: cannot be read as an image ({cause or type(error).__name__}); replace "
            "or remove it"
        ) from error


def damaged(paths: Sequence[str], *, seconds: float) -> tuple[list[str], int]:
    """Read images in random order, for a limited time.

    Returns:
        The errors of damaged images, and the number of images read.
    """
    generator = torch.Generator().manual_seed(0)
    until = time.monotonic() + seconds
    wrong = []
    count = 0
    for index in torch.randperm(len(paths), generator=generator, device="cpu").tolist():
        if time.monotonic() > until:
            break
        count += 1
        try:
            read_image(paths[index])
        except DataError as error:
            wrong.append(str(error))
    return sorted(wrong), count


def _transform(side: int, augmentation: AugmentationSpec | None) -> Callable[[Any], Tensor]:
    from torchvision.transforms import v2

    if augmentation is None or augmentation.crop is None:
        steps = [v2.Resize(round(side / MIDDLE), antialias=True), v2.CenterCrop(side)]
    else:
        steps = [v2.RandomResizedCrop(side, scale=(augmentation.crop, 1.0), antialias=True)]
    if augmentation is not None and augmentation.flip:
        steps.append(v2.RandomHorizontalFlip())
    if augmentation is not None and augmentation.randaugment:
        steps.append(v2.RandAugment(augmentation.randaugment, augmentation.magnitude))
    steps += [
        v2.ToImage(),
        v2.ToDtype(torch.float32, scale=True),
        v2.Normalize(MEAN, DEVIATION),
    ]
    composed: Callable[[Any], Tensor] = v2.Compose(steps)
    return composed


@dataclass(frozen=True)
class Folders:
    """A data set in folders, split.

    Attributes:
        train, validation: parts of the folder ``train``.
        num_classes: number of folders in it.
        digest: sha256 (hexadecimal) of names, sizes and labels of the files of both.
        load_test: reads the folder ``val``, the official validation images.
    """

    train: FolderImages
    validation: FolderImages
    num_classes: int
    digest: str
    load_test: Callable[[], FolderImages]


def load_folders(spec: DataSpec, augmentation: AugmentationSpec) -> Folders:
    """List the files of a data set in folders and split them.

    Raises:
        DataError: there are none, or the split or the image size is impossible.
    """
    side = spec.image_size or DEFAULT_SIDE[spec.name]
    if side not in SIDES:
        raise DataError(f"data.image_size: expected {SIDES[0]} to {SIDES[-1]} pixels, got {side}")
    folder = _find(spec, side)
    paths, labels, classes = _listed(folder / "train")
    rest, validation = split(labels, spec, len(labels) // 10)
    digest = hashlib.sha256(f"{side}".encode())
    for path, label in zip(paths, labels.tolist(), strict=True):
        name = os.fsencode(Path(path).relative_to(folder).as_posix())
        digest.update(b"\0%b\0%d\0%d" % (name, Path(path).stat().st_size, label))
    digest.update(repr((rest.tolist(), validation.tolist())).encode())

    def part(chosen: Tensor) -> FolderImages:
        return FolderImages(
            paths=[paths[index] for index in chosen.tolist()],
            targets=labels[chosen],
            num_classes=len(classes),
            side=side,
            augmentation=augmentation,
            workers=spec.workers,
        )

    def load_test() -> FolderImages:
        test_paths, test_labels, test_classes = _listed(folder / "val")
        _same_classes(folder, classes, test_classes)
        return replace(part(rest), paths=test_paths, targets=test_labels)

    if (folder / "val").is_dir():  # fail now, not after the search
        _same_classes(folder, classes, _class_names(folder / "val"))
    return Folders(part(rest), part(validation), len(classes), digest.hexdigest(), load_test)


def _find(spec: DataSpec, side: int) -> Path:
    """Return the folder that holds ``train`` and ``val``."""
    base = data_folder(spec)
    if spec.name != "imagenette":
        folder = base / "imagenet" if spec.root is None else base
        if not (folder / "train").is_dir():
            raise DataError(
                f"{folder}: expected the folders train and val, each with a folder of images a "
                f"class (as train/n01440764/*.JPEG), got no train; set data.root to the folder "
                "that has them"
            )
        return folder
    # The smallest published size that is at least that of the images.
    size = "160px" if side <= 160 else "320px" if side <= 320 else "full"
    folder = base / {"160px": "imagenette2-160", "320px": "imagenette2-320"}.get(
        size, "imagenette2"
    )
    if not (folder / "train").is_dir():

        def download(scratch: str) -> None:
            from torchvision.datasets import Imagenette

            Imagenette(scratch, split="train", size=size, download=True)

        advice = f"unpack {folder.name}.tgz (of github.com/fastai/imagenette) into {base}"
        fetch(spec, folder, download, advice)
    return folder


def _same_classes(folder: Path, train: list[str], val: list[str]) -> None:
    if train == val:
        return
    missing, more = sorted(set(train) - set(val)), sorted(set(val) - set(train))
    parts = [f"{kind}: {_short(names)}" for kind, names in
             (("only in train", missing), ("only in val", more)) if names]  # fmt: skip
    raise DataError(
        f"{folder}: expected the same classes in train and val, got {len(train)} and {len(val)} "
        f"({'; '.join(parts)})"
    )


def _class_names(folder: Path) -> list[str]:
    """Return the sorted names of the class folders."""
    try:
        with os.scandir(folder) as entries:
            return sorted(e.name for e in entries if e.is_dir() and not _is_left(e.name))
    except OSError as error:
        raise DataError(f"{folder}: cannot be read: {error.strerror}") from error


def _is_left(name: str) -> bool:
    return name.startswith(".") or name in _OF_SYSTEMS


def _listed(folder: Path) -> tuple[list[str], Tensor, list[str]]:
    """Return the files of a folder, their labels and the classes, all sorted by name.

    Raises:
        DataError: there are fewer than two classes, a class has no image, or an image is not a
            file.
    """
    classes = _class_names(folder)
    if len(classes) < 2:
        given = f"one alone ({classes[0]!r})" if classes else "none"
        raise DataError(
            f"{folder}: expected a folder of images for each class, two or more, got {given}"
        )
    paths, labels, empty = [], [], []
    for label, name in enumerate(classes):
        inside = _images_in(str(folder / name))
        paths += inside
        labels += [label] * len(inside)
        if not inside:
            empty.append(name)
    if empty:
        raise DataError(
            f"{folder}: expected images in each class's folder, found none in {_short(empty)} "
            f"(files ending in {', '.join(ENDINGS)}); remove the folder, or put them there"
        )
    return paths, torch.tensor(labels, device="cpu", dtype=torch.int64), classes


def _images_in(folder: str) -> list[str]:
    """Return the image files below a folder, following links, each folder once."""
    images = []
    seen: set[tuple[int, int]] = set()
    for inside, folders, files in os.walk(folder, followlinks=True):
        status = os.stat(inside)
        if (status.st_dev, status.st_ino) in seen:  # a link to a parent folder
            folders.clear()
            continue
        seen.add((status.st_dev, status.st_ino))
        folders[:] = sorted(name for name in folders if not _is_left(name))
        for name in files:
            if _is_left(name) or not name.lower().endswith(ENDINGS):
                continue
            path = os.path.join(inside, name)
            if not os.path.isfile(path):
                raise DataError(f"{path}: expected a file or a link to one")
            if not os.path.getsize(path):
                raise DataError(f"{path}: cannot be read as an image: it is empty")
            images.append((inside, name))
    # torchvision's order, which is part of a study's digest.
    return [os.path.join(*image) for image in sorted(images)]


def _short(names: Sequence[str]) -> str:
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return ", ".join(map(repr, names[:5])) + more
