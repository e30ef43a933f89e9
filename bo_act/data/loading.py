"""Data sets, split into training, validation and test images.

Whatever is chosen, tuned or compared is so by validation images. Test images are loaded by
``Data.load_test()`` alone, once, at the very end.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional

from bo_act.data.augmentation import Augmentation
from bo_act.data.datasets import open_source
from bo_act.data.images import Images, ImageSet
from bo_act.data.split import split
from bo_act.errors import DataError
from bo_act.specs import AugmentationSpec, DataSpec

SIDES = range(2, 257)  # one pixel is no image; beyond 256, padded images fill the memory


@dataclass(frozen=True, eq=False)
class Data:
    """A data set, ready for training.

    Attributes:
        name: of the data set.
        train: training images. Those in memory are standardized by their own mean and standard
            deviation in each channel.
        validation: validation images, under the same transform.
        num_classes: number of classes.
        in_channels: channels of each image.
        image_size: height and width of each image in pixels.
        digest: sha256 (hexadecimal) of the training and validation images and labels; of images in
            folders, their names and sizes.
        test_loader: loads the test images, under the same transform.
    """

    name: str
    train: Images = field(repr=False)
    validation: Images = field(repr=False)
    num_classes: int
    in_channels: int
    image_size: int
    digest: str
    test_loader: Callable[[], Images] | None = field(default=None, repr=False)

    def load_test(self) -> Images:
        """Load the test images; call it once, at the very end.

        Raises:
            DataError: there are none, or their files are gone.
        """
        if self.test_loader is None:
            raise DataError(f"data set {self.name!r} has no test images")
        return self.test_loader()


def load_data(spec: DataSpec, augmentation: AugmentationSpec | None = None) -> Data:
    """Load a data set and split it; the same spec always gives the same split.

    The official test or validation images of a data set are the test images. Validation images are
    held out of the others, by default 300 of ``digits``, 10,000 of the MNISTs, 5,000 of the CIFARs,
    and else a tenth. All choices are stratified by class.

    Args:
        spec: which images.
        augmentation: of training images; None leaves them as they are.

    Raises:
        DataError: files are missing or damaged, or the split or the image size is impossible.
    """
    augmentation = augmentation or AugmentationSpec()
    if spec.in_folders:
        from bo_act.data.folders import load_folders

        found = load_folders(spec, augmentation)
        return Data(
            name=spec.name,
            train=found.train,
            validation=found.validation,
            num_classes=found.num_classes,
            in_channels=3,
            image_size=found.train.side,
            digest=found.digest,
            test_loader=found.load_test,
        )
    source = open_source(spec)
    images, labels = source.train()
    classes = source.classes or int(labels.max()) + 1
    if classes > len(labels):
        raise DataError(
            f"{spec.name}: expected labels from 0 to the number of classes, got one of "
            f"{classes - 1} among {len(labels)} images"
        )
    rest, validation = split(labels, spec, source.validation or len(labels) // 10)
    side = images.shape[-1] if spec.image_size is None else spec.image_size
    if side not in SIDES:
        raise DataError(
            f"data.image_size: expected {SIDES[0]} to {SIDES[-1]} pixels, got {side}; "
            f"leave it out to keep the {images.shape[-1]} pixels of {spec.name!r}"
        )

    shape = tuple(images.shape[1:])
    scaled = partial(_scaled, white=source.white, side=side)
    train = scaled(images[rest])
    standardized = _standardization(train)
    changes = None
    if augmentation != AugmentationSpec():
        if augmentation.shift >= side:
            raise DataError(
                f"augmentation.shift: expected less than the {side} pixels of the images, "
                f"got {augmentation.shift}"
            )
        changes = Augmentation(augmentation, classes)
    sets = (
        ImageSet(standardized(train), labels[rest], changes),
        ImageSet(standardized(scaled(images[validation])), labels[validation]),
    )

    def load_test() -> ImageSet:
        test_images, test_labels = source.test()
        if tuple(test_images.shape[1:]) != shape:
            raise DataError(
                f"{spec.name}: expected test images of the shape {shape} of the training images, "
                f"got {tuple(test_images.shape[1:])}"
            )
        if len(test_labels) and int(test_labels.max()) >= classes:
            raise DataError(
                f"{spec.name}: expected test labels among the {classes} classes of the training "
                f"images, from 0, got {int(test_labels.max())}"
            )
        return ImageSet(standardized(scaled(test_images)), test_labels)

    return Data(
        name=spec.name,
        train=sets[0],
        validation=sets[1],
        num_classes=classes,
        in_channels=images.shape[1],
        image_size=side,
        digest=_digest(*sets),
        test_loader=load_test,
    )


# --- the transforms --------------------------------------------------------------------------


def _scaled(images: Tensor, *, white: int, side: int) -> Tensor:
    """Return images in [0, 1], average-pooled or padded with black to ``side`` pixels."""
    images = images.float() / white if images.dtype == torch.uint8 else images
    missing = side - images.shape[-1]
    if missing < 0:
        return functional.adaptive_avg_pool2d(images, side)
    before, after = missing // 2, missing - missing // 2
    return functional.pad(images, (before, after, before, after))


def _standardization(images: Tensor) -> Callable[[Tensor], Tensor]:
    """Return the map that gives each channel of these images the mean 0 and the deviation 1."""
    channels = images.double().transpose(0, 1).flatten(1)
    deviation, mean = torch.std_mean(channels, dim=1, correction=0)
    if not deviation.all():
        raise DataError("the training images are all of one gray; nothing can be learned of them")
    # Rounded, so that the order of summation on another machine does not change the digest.
    scale, shift = (
        torch.tensor(
            [round(float(value), 6) for value in values], device="cpu", dtype=torch.float32
        ).view(-1, 1, 1)
        for values in (deviation, mean)
    )
    return lambda some: (some - shift) / scale


def _digest(*sets: ImageSet) -> str:
    digest = hashlib.sha256()
    for images in sets:
        digest.update(repr(tuple(images.images.shape)).encode())
        digest.update(images.images.contiguous().numpy().data)
        digest.update(images.labels.contiguous().numpy().data)
    return digest.hexdigest()
