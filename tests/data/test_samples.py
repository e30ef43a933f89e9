from __future__ import annotations

from pathlib import Path

import pytest
import torch
from image_files import write_folders

from bo_act.data.loading import load_data
from bo_act.data.samples import Samples, SampleSet
from bo_act.specs import DataSpec


def resident() -> SampleSet:
    images = torch.arange(7 * 12).float().view(7, 3, 2, 2)
    return SampleSet(images, torch.tensor([0, 1, 2, 0, 1, 2, 0]))


def in_folders(folder: Path) -> Samples:
    write_folders(folder, each=3)
    spec = DataSpec(name="folder", root=folder, image_size=8, train=7, validation=1, workers=1)
    return load_data(spec).train


@pytest.fixture(params=["resident", "in folders"])
def some(request, tmp_path) -> Samples:
    """Seven images of three classes, of every kind of set."""
    return resident() if request.param == "resident" else in_folders(tmp_path / "pictures")


@pytest.mark.parametrize("order", [None, torch.tensor([5, 0, 3, 6, 1])])
@pytest.mark.parametrize("batch_size", [1, 2, 5, 100])
def test_batches_give_out_images_in_order(some, order, batch_size):
    indices = torch.arange(len(some)) if order is None else order
    batches = list(some.batches(batch_size, order=order))
    assert [len(images) for images, _ in batches[:-1]] == [batch_size] * (len(batches) - 1)
    assert 0 < len(batches[-1][0]) <= batch_size
    images, labels = some.take(indices)
    assert torch.equal(torch.cat([part for part, _ in batches]), images)
    assert torch.equal(torch.cat([part for _, part in batches]), labels)
    assert torch.equal(labels, some.targets[indices])
    assert images.dtype == torch.float32
    assert images.shape[1] == 3


def test_sets_on_a_device_stay_the_same(some):
    there = some.to("cpu")
    assert len(there) == len(some.targets) == 7
    assert torch.equal(there.take(torch.tensor([4]))[0], some.take(torch.tensor([4]))[0])
