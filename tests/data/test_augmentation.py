from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from bo_act.data.augmentation import Augmentation, mix
from bo_act.data.samples import SampleSet
from bo_act.specs import AugmentationSpec


def noise(count: int = 40, side: int = 9) -> torch.Tensor:
    return torch.rand(count, 2, side, side, generator=torch.Generator().manual_seed(0)) + 1


def drawn(draw: tuple[int, int] = (0, 0), *, batch: int = 7, order=None, **values) -> dict:
    """Return what becomes of each image, by its index."""
    images = noise()
    labels = torch.arange(len(images)) % 5
    some = SampleSet(images, labels, Augmentation(AugmentationSpec(**values), 5))
    order = torch.arange(len(images)) if order is None else order
    parts = [part for part, _ in some.batches(batch, order=order, draw=draw)]
    return dict(zip(order.tolist(), torch.cat(parts), strict=True))


EACH = {"flip": True, "shift": 3, "cutout": 4}


@given(st.permutations(range(40)), st.integers(1, 40))
def test_an_image_changes_alike_in_any_order_and_batch(order, batch):
    wanted = drawn(**EACH)
    found = drawn(batch=batch, order=torch.tensor(order[:25]), **EACH)
    assert all(torch.equal(image, wanted[index]) for index, image in found.items())


@pytest.mark.parametrize("draw", [(1, 0), (0, 1), (-1, 0)])
@pytest.mark.parametrize("key", EACH)
def test_seed_and_epoch_change_what_is_drawn(key, draw):
    first, second = drawn(**{key: EACH[key]}), drawn(draw, **{key: EACH[key]})
    assert not all(torch.equal(first[index], second[index]) for index in first)


def test_flips_and_shifts_are_those_of_padding_by_reflection():
    images, changed = noise(), drawn(flip=True, shift=3)
    padded = np.pad(images.numpy(), ((0, 0), (0, 0), (3, 3), (3, 3)), mode="reflect")
    seen = set()
    for index, image in changed.items():
        for row in range(7):
            for column in range(7):
                window = padded[index, :, row : row + 9, column : column + 9]
                for flipped in (False, True):
                    if np.array_equal(window[..., ::-1] if flipped else window, image.numpy()):
                        seen.add((index, row, column, flipped))
    assert {index for index, *_ in seen} == set(range(40))
    for place, values in ((1, set(range(7))), (2, set(range(7))), (3, {False, True})):
        assert {one[place] for one in seen} == values


def test_cutout_is_one_square_of_zeros():
    sizes = set()
    for index, image in drawn(cutout=4).items():
        hidden = image[0] == 0
        assert torch.equal(hidden, image[1] == 0)
        assert torch.equal(image[:, ~hidden], noise()[index][:, ~hidden])
        rows, columns = hidden.any(1).nonzero(), hidden.any(0).nonzero()
        assert int(hidden.sum()) == len(rows) * len(columns)
        assert int(rows.max() - rows.min()) == len(rows) - 1
        sizes |= {len(rows), len(columns)}
    assert sizes <= {2, 3, 4}
    assert 4 in sizes


@pytest.mark.parametrize(("mixup", "cutmix"), [(0.4, 0.0), (0.0, 1.0), (0.4, 1.0)])
def test_labels_are_mixed_as_the_images_are(mixup, cutmix):
    # Images of one gray each, their own class: an image's mean is its label's.
    labels = torch.arange(6)
    images = labels.float().view(6, 1, 1, 1).expand(6, 1, 16, 16)
    spec = AugmentationSpec(mixup=mixup, cutmix=cutmix)
    kinds = set()
    for key in range(30):
        mixed, shares = mix(images, labels, spec, 6, (0, 0, key))
        torch.testing.assert_close(shares.sum(1), torch.ones(6))
        expected = (shares * torch.arange(6.0)).sum(1)
        torch.testing.assert_close(mixed.mean((1, 2, 3)), expected)
        kinds.add(bool((mixed[1] != mixed[1].flatten()[0]).any()))
        assert torch.equal(mix(images, labels, spec, 6, (0, 0, key))[0], mixed)
    # What mixup gives is of one gray, what CutMix gives is of two.
    assert kinds == ({False} if mixup else set()) | ({True} if cutmix else set())


def test_images_stay_as_they_are_without_a_draw():
    images = SampleSet(noise(), torch.zeros(40).long(), Augmentation(AugmentationSpec(**EACH), 5))
    for order in (None, torch.arange(40)):
        batches = list(images.batches(16, order=order))
        assert torch.equal(torch.cat([part for part, _ in batches]), noise())
    assert images.to("cpu").augmentation is images.augmentation
