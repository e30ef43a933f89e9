from __future__ import annotations

import gzip
import os
from pathlib import Path

import pytest
import torch
from image_files import write_cifar, write_folders, write_idx
from torch import nn

from bo_act.data import datasets
from bo_act.data.loading import load_data
from bo_act.errors import DataError
from bo_act.specs import AugmentationSpec, DataSpec, StudySpec, TrainingSpec
from bo_act.training.trainer import train


def fashion(root: Path, **values: object) -> DataSpec:
    return DataSpec(name="fashion_mnist", root=root, validation=50, **values)


def said_by(error: pytest.ExceptionInfo[Exception]) -> str:
    assert "\n" not in str(error.value)
    return str(error.value)


# --- the MNISTs ------------------------------------------------------------------------------


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize(
    ("name", "inside"),
    [("fashion_mnist", "FashionMNIST/raw"), ("mnist", "MNIST/raw"), ("fashion_mnist", ".")],
)
def test_files_under_root_are_read_where_they_are(tmp_path, packed, name, inside):
    write_idx(tmp_path / inside, packed=packed)
    before = sorted(tmp_path.rglob("*"))
    data = load_data(DataSpec(name=name, root=tmp_path, validation=50))
    assert data.train.inputs.shape == (150, 1, 28, 28)
    assert data.validation.targets.bincount().tolist() == [5] * 10
    test = data.load_test()
    assert test.targets.tolist() == [index % 10 for index in range(40)]
    # The images were made so that their mean gray grows with the class.
    means = torch.stack([test.inputs[test.targets == label].mean() for label in range(10)])
    assert torch.all(means.diff() > 0)
    assert sorted(tmp_path.rglob("*")) == before


def test_test_images_are_read_only_when_asked_for(tmp_path):
    folder = tmp_path / "FashionMNIST" / "raw"
    write_idx(folder, packed=False)
    (folder / "t10k-images-idx3-ubyte").write_bytes(b"not read before the end")
    data = load_data(fashion(tmp_path))
    with pytest.raises(DataError, match="are unreadable or not the official ones"):
        data.load_test()


def test_missing_files_are_named_with_their_folder(tmp_path):
    write_idx(tmp_path, packed=True)
    (tmp_path / "t10k-labels-idx1-ubyte.gz").unlink()
    with pytest.raises(DataError) as error:
        load_data(fashion(tmp_path))
    said = said_by(error)
    assert all(name in said for name in datasets.IDX)
    assert str(tmp_path / "FashionMNIST" / "raw") in said
    assert "data.download is off" in said


def test_a_download_puts_whole_files_in_place_and_is_not_repeated(tmp_path, monkeypatch, capsys):
    from torchvision.datasets import FashionMNIST

    downloads: list[Path] = []

    def download(self: FashionMNIST) -> None:
        print("Downloading")
        downloads.append(Path(self.root))
        write_idx(Path(self.raw_folder), packed=False)

    monkeypatch.setattr(FashionMNIST, "download", download)
    for _ in range(2):
        assert len(load_data(fashion(tmp_path, download=True)).train) == 150
    assert len(downloads) == 1
    assert downloads[0] != tmp_path
    target = tmp_path / "FashionMNIST" / "raw"
    assert {path.name for path in target.iterdir()} == set(datasets.IDX)
    assert list(tmp_path.iterdir()) == [target.parent]
    assert capsys.readouterr().out == ""


def test_a_download_that_fails_says_what_to_do(tmp_path, monkeypatch):
    def download(self: object) -> None:
        raise OSError("no network\nin tests")

    monkeypatch.setattr("torchvision.datasets.CIFAR10.download", download)
    with pytest.raises(
        DataError, match=r"OSError: no network in tests.*\); put the files"
    ) as error:
        load_data(DataSpec(name="cifar10", root=tmp_path, download=True))
    assert str(tmp_path / "cifar-10-batches-py") in said_by(error)


def test_without_root_the_cache_folder_is_used(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets, "DEBIAN_FOLDER", tmp_path / "debian")
    with pytest.raises(DataError) as error:
        load_data(DataSpec(name="fashion_mnist"))
    assert str(tmp_path / "cache" / "data" / "FashionMNIST" / "raw") in said_by(error)
    write_idx(tmp_path / "debian", packed=True)
    assert len(load_data(DataSpec(name="fashion_mnist", validation=50)).train) == 150


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("train-images-idx3-ubyte.gz", b"not gzip"),
        ("train-images-idx3-ubyte.gz", gzip.compress(b"x" * 5000)[:-12]),
        ("train-images-idx3-ubyte.gz", gzip.compress(bytes((0, 0, 8, 3)))),
        ("train-labels-idx1-ubyte.gz", gzip.compress(bytes((0, 0, 8, 1, 0, 0, 0, 1, 3)))),
    ],
    ids=["not gzip", "cut off", "no sizes", "other count"],
)
def test_damaged_files_are_named(tmp_path, name, content):
    write_idx(tmp_path, packed=True)
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=r"expected|unreadable") as error:
        load_data(fashion(tmp_path))
    assert str(tmp_path) in said_by(error)


@pytest.mark.skipif(not datasets.DEBIAN_FOLDER.is_dir(), reason="no Fashion-MNIST here")
def test_the_real_files_are_read():
    data = load_data(DataSpec(name="fashion_mnist", train=2000, image_size=14))
    assert data.train.inputs.shape == (2000, 1, 14, 14)
    assert data.validation.targets.bincount().tolist() == [1000] * 10
    assert data.load_test().targets.bincount().tolist() == [1000] * 10
    assert data.load_test().targets[:4].tolist() == [9, 2, 1, 1]  # an ankle boot, a pullover, ...


# --- the CIFARs ------------------------------------------------------------------------------


@pytest.mark.parametrize("classes", [10, 100])
def test_cifar_is_read_and_each_channel_standardized(tmp_path, monkeypatch, classes):
    pixels = write_cifar(tmp_path, monkeypatch, classes=classes)
    data = load_data(DataSpec(name=f"cifar{classes}", root=tmp_path, validation=classes))
    assert (data.num_classes, data.facts["in_channels"], data.facts["image_size"]) == (
        classes,
        3,
        32,
    )
    assert data.validation.targets.bincount().tolist() == [1] * classes
    assert len(data.train) == len(pixels) - classes
    deviation, mean = torch.std_mean(data.train.inputs.double(), (0, 2, 3), correction=0)
    torch.testing.assert_close(mean, torch.zeros(3).double(), atol=1e-5, rtol=0)
    torch.testing.assert_close(deviation, torch.ones(3).double(), atol=1e-5, rtol=0)
    # Undone, the images are those of the file: rows from the top, red before green before blue.
    wanted = torch.from_numpy(pixels).flatten(1).unique(dim=0)
    images = torch.cat([data.train.inputs, data.validation.inputs])
    low, high = images.amin((0, 2, 3)).view(3, 1, 1), images.amax((0, 2, 3)).view(3, 1, 1)
    found = ((images - low) / (high - low) * 255).round().to(torch.uint8)
    assert torch.equal(found.flatten(1).unique(dim=0), wanted)
    assert len(data.load_test()) == 2 * classes


def test_cifar_files_with_other_checksums_are_refused(tmp_path, monkeypatch):
    write_cifar(tmp_path, monkeypatch, classes=10)
    with (tmp_path / "cifar-10-batches-py" / "data_batch_2").open("ab") as file:
        file.write(b"x")
    with pytest.raises(DataError, match="not the official ones"):
        load_data(DataSpec(name="cifar10", root=tmp_path))


# --- one's own -------------------------------------------------------------------------------

OWN = """
import torch

def load(*, train):
    labels = torch.arange(60 if train else 20) % 3
    images = torch.rand(len(labels), 3, 6, 6, generator=torch.Generator().manual_seed(0))
    return {returned}
"""


def own(folder: Path, returned: str = "images, labels", function: str = "load") -> DataSpec:
    (folder / "my_data.py").write_text(OWN.format(returned=returned))
    return DataSpec(name=f"{folder}/my_data.py:{function}")


def test_a_function_of_ones_own_loads_images(tmp_path):
    data = load_data(own(tmp_path))
    assert (len(data.train), len(data.validation), len(data.load_test())) == (54, 6, 20)
    assert (data.num_classes, data.facts["in_channels"], data.facts["image_size"]) == (3, 3, 6)
    numbers = load_data(own(tmp_path, "(images * 255).byte().numpy(), labels.tolist()"))
    torch.testing.assert_close(numbers.train.inputs, data.train.inputs, atol=0.03, rtol=0)


@pytest.mark.parametrize(
    ("returned", "says"),
    [
        ("images * 2, labels", "uint8, or as numbers from 0 to 1"),
        ("images / 0, labels", "uint8, or as numbers from 0 to 1"),
        ("images, labels[:5]", "expected 60 labels"),
        ("images, labels - 1", "expected 60 labels"),
        ("images", "expected load"),
        ("exit(3)", "expected load"),
    ],
)
def test_what_ones_own_function_returns_is_checked(tmp_path, returned, says):
    with pytest.raises(DataError, match=says) as error:
        load_data(own(tmp_path, returned))
    assert "my_data.py:load" in said_by(error)


def test_a_missing_function_or_file_is_named(tmp_path):
    with pytest.raises(DataError, match=r"no function 'lode' \(did you mean 'load'\?\)"):
        load_data(own(tmp_path, function="lode"))
    with pytest.raises(DataError, match=r"'nowhere\.py' cannot be read"):
        load_data(DataSpec(name="nowhere.py:load"))


# --- folders ---------------------------------------------------------------------------------

ALL = AugmentationSpec(crop=0.3, flip=True, randaugment=2, mixup=0.1, cutmix=1.0)


@pytest.fixture
def folders(tmp_path) -> DataSpec:
    write_folders(tmp_path / "pictures")
    return DataSpec(
        name="folder", root=tmp_path / "pictures", image_size=16, validation=6, workers=0
    )


def test_folders_are_split_and_read(folders):
    data = load_data(folders, ALL)
    assert (len(data.train), len(data.validation), len(data.load_test())) == (30, 6, 12)
    assert (data.num_classes, data.facts["in_channels"], data.facts["image_size"]) == (3, 3, 16)
    assert data.validation.targets.tolist() == [0, 0, 1, 1, 2, 2]
    images, labels = next(data.load_test().batches(100))
    assert images.shape == (12, 3, 16, 16)
    means = [float(images[labels == label].mean()) for label in range(3)]
    assert means == sorted(means)
    assert torch.equal(images[:2], data.load_test().take(torch.tensor([0, 1]))[0])


def test_the_digest_of_folders_follows_files_split_and_size(folders):
    digests = [load_data(folders).digest]
    for changes in ({"seed": 1}, {"image_size": 17}, {"validation": 9}):
        digests.append(load_data(folders.model_copy(update=changes)).digest)
    assert load_data(folders.model_copy(update={"workers": 2}), ALL).digest == digests[0]
    os.unlink(folders.root / "train" / "n00000001" / "3.JPEG")
    digests.append(load_data(folders).digest)
    assert len(set(digests)) == 5


def test_workers_change_no_batch(folders):
    order = torch.tensor([7, 0, 21, 3, 14, 9])
    state = torch.get_rng_state()
    runs = []
    for workers in (0, 2):
        images = load_data(folders.model_copy(update={"workers": workers}), ALL).train
        runs.append(list(images.batches(4, order=order, draw=(0, 3))))
    for (a, b), (c, d) in zip(*runs, strict=True):
        assert torch.equal(a, c)
        assert torch.equal(b, d)
        assert b.shape == (len(a), 3)
    assert torch.equal(torch.get_rng_state(), state)


def test_a_damaged_image_is_named(folders):
    data = load_data(folders)
    path = Path(data.train.paths[0])
    path.write_bytes(b"no image")
    with pytest.raises(DataError, match="cannot be read as an image") as error:
        data.train.take(torch.tensor([0]))
    assert str(path) in str(error.value)


def test_imagenette_has_its_published_folders(tmp_path):
    spec = DataSpec(name="imagenette", root=tmp_path, workers=0, validation=3)
    with pytest.raises(DataError, match=r"unpack imagenette2-160.tgz"):
        load_data(spec)
    write_folders(tmp_path / "imagenette2-160", each=2)
    assert load_data(spec).facts["image_size"] == 160
    with pytest.raises(DataError, match=r"unpack imagenette2-320.tgz"):
        load_data(spec.model_copy(update={"image_size": 224}))


def test_missing_folders_are_named(tmp_path):
    with pytest.raises(DataError, match="expected the folders train and val") as error:
        load_data(DataSpec(name="imagenet", root=tmp_path))
    assert str(tmp_path) in said_by(error)
    (tmp_path / "train").mkdir()
    with pytest.raises(DataError, match="expected a folder of images for each class") as error:
        load_data(DataSpec(name="imagenet", root=tmp_path))
    said_by(error)


def test_a_network_trains_on_folders_the_same_every_time(folders):
    data = load_data(folders, ALL)
    spec = TrainingSpec(epochs=2, batch_size=10, device="cpu", threads=1)

    def losses() -> tuple[float, ...]:
        torch.manual_seed(0)
        network = nn.Sequential(nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(12, 3))
        return train(network, data, spec, seed=0).train_loss

    assert losses() == losses()


# --- names -----------------------------------------------------------------------------------


def test_unknown_names_and_misplaced_augmentation_are_refused():
    with pytest.raises(ValueError, match=r"got 'cifar' \(did you mean 'cifar10'"):
        DataSpec(name="cifar")
    base = {"name": "a", "model": {"name": "mlp"}}
    for name, table, says in (
        ("cifar10", {"crop": 0.5}, "augmentation.crop is for images in folders"),
        ("imagenet", {"shift": 2}, "augmentation.shift is for images in memory"),
    ):
        with pytest.raises(ValueError, match=says):
            StudySpec.model_validate(base | {"data": {"name": name}, "augmentation": table})
    with pytest.raises(DataError, match="less than the 8 pixels"):
        load_data(DataSpec(name="digits"), AugmentationSpec(shift=8))
