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

from bo_act.errors import DataError
from bo_act.specs import DataSpec
from bo_act.training import fashion_mnist
from bo_act.training.images import Images, ImageSet

DIGITS_TEST_SHARE = 0.2
DIGITS_TEST_SEED = 1797  # fixed, so that every study keeps the same test images apart
SIDES = range(2, 257)  # one pixel is no image; beyond 256, padded images fill the memory


@dataclass(frozen=True, eq=False)
class Data:
    """A data set, ready for training.

    Attributes:
        name: of the data set.
        train: training images, standardized by their own mean and standard deviation.
        validation: validation images, under the same transform.
        num_classes: number of classes.
        in_channels: channels of each image.
        image_size: height and width of each image in pixels.
        digest: sha256 (hexadecimal) of the training and validation images and labels.
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


def load_data(spec: DataSpec) -> Data:
    """Load a data set and split it; the same spec always gives the same split.

    ``digits``: scikit-learn's 1,797 gray images of 8x8, 20 % of them the test set, 300 for
    validation by default. ``fashion_mnist``: 70,000 gray images of 28x28, the official 10,000 the
    test set, 10,000 for validation by default. All choices are stratified by class.

    Raises:
        DataError: files are missing or damaged, or the split or the image size is impossible.
    """
    source = _open(spec)
    images, labels = source.train()
    held_out = source.validation if spec.validation is None else spec.validation
    if held_out >= len(labels):
        raise DataError(
            f"data.validation: expected fewer than the {len(labels)} images of {spec.name!r} "
            f"that are not test images, got {held_out}; choose a smaller number"
        )
    side = images.shape[-1] if spec.image_size is None else spec.image_size
    if side not in SIDES:
        raise DataError(
            f"data.image_size: expected {SIDES[0]} to {SIDES[-1]} pixels, got {side}; "
            f"leave it out to keep the {images.shape[-1]} pixels of {spec.name!r}"
        )

    generator = torch.Generator().manual_seed(spec.seed)
    validation = stratified_sample(labels, held_out, generator)
    rest = _others(len(labels), validation)
    if spec.train is not None and spec.train < len(rest):
        rest = rest[stratified_sample(labels[rest], spec.train, generator)]

    scaled = partial(_scaled, white=source.white, side=side)
    train = scaled(images[rest])
    deviation, mean = torch.std_mean(train.double(), correction=0)
    # Rounded, so that the order of summation on another machine does not change the digest.
    standardized = partial(
        _standardized, mean=round(float(mean), 6), std=round(float(deviation), 6)
    )
    sets = (
        ImageSet(standardized(train), labels[rest]),
        ImageSet(standardized(scaled(images[validation])), labels[validation]),
    )

    def load_test() -> ImageSet:
        test_images, test_labels = source.test()
        return ImageSet(standardized(scaled(test_images)), test_labels)

    return Data(
        name=spec.name,
        train=sets[0],
        validation=sets[1],
        num_classes=source.classes,
        in_channels=images.shape[1],
        image_size=side,
        digest=_digest(*sets),
        test_loader=load_test,
    )


def stratified_sample(labels: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Choose images at random so that each class keeps its share.

    Args:
        labels: (n,) int64.
        count: how many to choose, at most n.
        generator: source of randomness, on the CPU.

    Returns:
        indices (count,) int64, ascending. Each class has its exact share, rounded up for the
        classes with the largest remainders.
    """
    classes, sizes = labels.unique(return_counts=True)
    quotas = count * sizes // len(labels)
    remainders = count * sizes % len(labels)
    missing = count - int(quotas.sum())
    quotas[remainders.argsort(descending=True, stable=True)[:missing]] += 1
    order = torch.randperm(len(labels), generator=generator)
    chosen = [
        order[labels[order] == label][:quota]
        for label, quota in zip(classes.tolist(), quotas.tolist(), strict=True)
    ]
    return torch.cat(chosen).sort().values


# --- the sources -----------------------------------------------------------------------------

Part = tuple[Tensor, Tensor]  # images (n, c, h, w) uint8, labels (n,) int64


@dataclass(frozen=True)
class _Source:
    train: Callable[[], Part]
    test: Callable[[], Part]
    white: int  # the value of the brightest pixel
    classes: int
    validation: int  # default number of validation images


def _open(spec: DataSpec) -> _Source:
    if spec.name == "digits":
        return _Source(
            train=partial(_digits, test=False),
            test=partial(_digits, test=True),
            white=16,
            classes=10,
            validation=300,
        )
    folder = fashion_mnist.files_folder(spec.root, download=spec.download)
    return _Source(
        train=partial(fashion_mnist.read, folder, "train"),
        test=partial(fashion_mnist.read, folder, "t10k"),
        white=255,
        classes=fashion_mnist.CLASSES,
        validation=10_000,
    )


def _digits(*, test: bool) -> Part:
    from sklearn.datasets import load_digits

    content = load_digits()
    images = torch.from_numpy(content.images).to(torch.uint8).unsqueeze(1)
    labels = torch.from_numpy(content.target).long()
    generator = torch.Generator().manual_seed(DIGITS_TEST_SEED)
    chosen = stratified_sample(labels, round(DIGITS_TEST_SHARE * len(labels)), generator)
    if not test:
        chosen = _others(len(labels), chosen)
    return images[chosen], labels[chosen]


# --- the transforms --------------------------------------------------------------------------


def _others(count: int, chosen: Tensor) -> Tensor:
    left = torch.ones(count, dtype=torch.bool)
    left[chosen] = False
    return left.nonzero().squeeze(1)


def _scaled(images: Tensor, *, white: int, side: int) -> Tensor:
    """Return images in [0, 1], average-pooled or padded with black to ``side`` pixels."""
    images = images.float() / white
    missing = side - images.shape[-1]
    if missing < 0:
        return functional.adaptive_avg_pool2d(images, side)
    before, after = missing // 2, missing - missing // 2
    return functional.pad(images, (before, after, before, after))


def _standardized(images: Tensor, *, mean: float, std: float) -> Tensor:
    if std == 0:
        raise DataError("the training images are all of one gray; nothing can be learned of them")
    return (images - mean) / std


def _digest(*sets: ImageSet) -> str:
    digest = hashlib.sha256()
    for images in sets:
        digest.update(repr(tuple(images.images.shape)).encode())
        digest.update(images.images.contiguous().numpy().data)
        digest.update(images.labels.contiguous().numpy().data)
    return digest.hexdigest()
