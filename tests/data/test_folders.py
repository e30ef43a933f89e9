"""Folders of images as people have them: hidden files, links, damaged images, odd pixels."""

from __future__ import annotations

import io
import os
import shutil
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from image_files import write_folders
from PIL import Image
from torchvision.datasets import ImageFolder

from bo_act.data import folders as reading
from bo_act.data.folders import FolderImages, damaged, read_image
from bo_act.data.loading import Data, load_data
from bo_act.errors import DataError
from bo_act.specs import DataSpec


@pytest.fixture
def root(tmp_path) -> Path:
    write_folders(tmp_path / "pictures", each=6)
    return tmp_path / "pictures"


def spec(root: Path, **more: object) -> DataSpec:
    usual = {"name": "folder", "root": root, "image_size": 8, "validation": 3, "workers": 0}
    return DataSpec.model_validate(usual | more)


def load(root: Path, **more: object) -> Data:
    return load_data(spec(root, **more))


def refused(root: Path, **more: object) -> str:
    with pytest.raises(DataError) as caught:
        load(root, **more)
    said = str(caught.value)
    assert "\n" not in said
    return said


CLASS = "n00000001"


# --- what is listed -------------------------------------------------------------------------


def test_what_systems_leave_in_folders_is_left_aside(root):
    clean = load(root)
    for part in ("train", "val"):
        for hidden in (".ipynb_checkpoints", "__MACOSX", ".git", "@eaDir", "lost+found"):
            shutil.copytree(root / part / CLASS, root / part / hidden)
            shutil.copytree(root / "val" / CLASS, root / part / CLASS / hidden)
        (root / part / ".cache").mkdir()
        for name in ("._0.JPEG", ".DS_Store", "Thumbs.db", "desktop.ini", "notes.txt", "a.JPEG~"):
            (root / part / CLASS / name).write_bytes(b"no image")
            (root / part / name).write_bytes(b"no image")
    found = load(root)
    assert (found.num_classes, found.digest) == (3, clean.digest)
    assert (len(found.train), len(found.validation)) == (15, 3)
    assert len(found.load_test()) == 12


def test_files_are_in_torchvisions_order(root):
    """A study's digest is of the files in their order."""
    inside = root / "train" / CLASS
    for name in ("b", "a-b", "a", "A"):
        (inside / name).mkdir()
        shutil.copy(inside / "0.JPEG", inside / name / "9.jpeg")
        shutil.copy(inside / "0.JPEG", inside / name / "10.PNG")
    theirs = ImageFolder(str(root / "train"))
    paths, labels, classes = reading._listed(root / "train")
    assert (paths, labels.tolist()) == ([path for path, _ in theirs.samples], theirs.targets)
    assert classes == theirs.classes


def test_endings_in_upper_case_and_links(root, tmp_path):
    inside = root / "train" / CLASS
    for place, ending in enumerate(("PNG", "Jpg", "TIFF", "webp")):
        Image.new("RGB", (9, 9)).save(tmp_path / f"one.{ending}")
        (inside / f"link{place}.{ending}").symlink_to(tmp_path / f"one.{ending}")
    (root / "train" / "linked").symlink_to(root / "train" / CLASS)
    (root / "val" / "linked").symlink_to(root / "val" / CLASS)
    (inside / "round").symlink_to(inside)  # a link to the folder that it is in
    data = load(root)
    assert data.num_classes == 4
    assert len(data.train) + len(data.validation) == 2 * 10 + 2 * 6


def test_names_that_are_no_unicode(root):
    name = os.fsencode(root / "train" / CLASS) + b"/\xff\xfe.JPEG"
    shutil.copy(root / "train" / CLASS / "0.JPEG", name)
    assert len(load(root).train) == 16


# --- what is refused ------------------------------------------------------------------------


def test_one_class_alone(root):
    for part in ("train", "val"):
        for number in (0, 2):
            shutil.rmtree(root / part / f"n{number:08}")
    assert "two or more, got one alone ('n00000001')" in refused(root)
    for part in ("train", "val"):  # beside it a hidden one, which is none
        shutil.copytree(root / part / CLASS, root / part / ".ipynb_checkpoints")
    assert "got one alone" in refused(root)


def test_one_class_alone_of_a_function_of_ones_own(tmp_path):
    path = tmp_path / "own.py"
    path.write_text(
        "import torch\n\ndef load(*, train):\n"
        "    return torch.rand(20, 1, 4, 4), torch.full((20,), 3)\n"
    )
    with pytest.raises(DataError, match="at least two classes, got class 3 alone"):
        load_data(DataSpec(name=f"{path}:load", validation=4))


def test_so_few_training_images_that_one_class_is_left(root):
    inside = root / "train" / CLASS
    for number in range(60):
        shutil.copy(inside / "0.JPEG", inside / f"more{number}.JPEG")
    assert "data.train: the training images (2) of" in refused(root, train=2)


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (lambda root: (root / "train" / "cats").mkdir(), "found none in 'cats' (files ending in"),
        (lambda root: (root / "val" / "cats").mkdir(), "3 and 4 (only in val: 'cats')"),
        (lambda root: shutil.rmtree(root / "val" / CLASS), "only in train: 'n00000001'"),
        (
            lambda root: (root / "val" / CLASS).rename(root / "val" / "dogs"),
            "3 and 3 (only in train: 'n00000001'; only in val: 'dogs')",
        ),
        (
            lambda root: (root / "train" / CLASS / "x.png").symlink_to(root / "nowhere"),
            "x.png: expected a file or a link to one",
        ),
        (
            lambda root: os.mkfifo(root / "train" / CLASS / "x.png"),
            "x.png: expected a file or a link to one",
        ),
        (
            lambda root: (root / "train" / CLASS / "x.png").touch(),
            "x.png: cannot be read as an image: it is empty",
        ),
    ],
)
def test_folders_that_are_no_data_set(root, spoil, says):
    spoil(root)
    assert says in refused(root)


# --- images ---------------------------------------------------------------------------------


def patched_png(width: int, height: int) -> bytes:
    """A PNG that claims to be of another size."""
    buffer = io.BytesIO()
    Image.new("L", (4, 4)).save(buffer, "PNG")
    content = bytearray(buffer.getvalue())
    content[16:24] = struct.pack(">II", width, height)
    content[29:33] = struct.pack(">I", zlib.crc32(content[12:29]))
    return bytes(content)


def long_png() -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (2, 6_000)).save(buffer, "PNG")
    return buffer.getvalue()


def float_tiff() -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.ones((4, 4), dtype=np.float32)).save(buffer, "TIFF")
    return buffer.getvalue()


DAMAGED = {
    "cut": (lambda old: old[: len(old) // 2], "(?i)truncated"),
    "text": (lambda old: b"a,b\n1,2\n", "cannot identify image file"),
    "zeros": (lambda old: bytes(len(old)), "cannot identify image file"),
    "markup": (lambda old: b"<html>404 Not Found</html>", "cannot identify"),
    "bomb": (lambda old: patched_png(50_000, 50_000), "decompression bomb"),
    "cut PNG": (lambda old: patched_png(40, 40), "truncated"),
    "long": (lambda old: long_png(), "its sides are 2 and 6000 pixels"),
    "floats": (lambda old: float_tiff(), "floating-point numbers"),
}


@pytest.mark.parametrize("damage", DAMAGED)
def test_a_damaged_image_is_named_on_one_line(root, damage):
    data = load(root)
    assert isinstance(data.train, FolderImages)
    spoil, says = DAMAGED[damage]
    path = Path(data.train.paths[2])
    path.write_bytes(spoil(path.read_bytes()))
    for read in (
        lambda: data.train.take(torch.tensor([2])),
        lambda: list(data.train.batches(4)),
        lambda: list(data.train.batches(4, draw=(0, 1))),
    ):
        with pytest.raises(DataError, match=says) as caught:
            read()
        said = str(caught.value)
        assert said.startswith(f"{path}: cannot be read as an image")
        assert said.endswith("; replace or remove it")
        assert "\n" not in said
        assert "Traceback" not in said
    assert [one.partition(":")[0] for one in damaged(data.train.paths, seconds=60)[0]] == [
        str(path)
    ]


def test_a_damaged_image_that_a_loader_process_meets_is_named_on_one_line(root):
    data = load(root, workers=2)
    assert isinstance(data.train, FolderImages)
    path = Path(data.train.paths[7])
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(DataError) as caught:
        list(data.train.batches(4))
    assert str(caught.value).startswith(f"{path}: cannot be read as an image")
    assert "\n" not in str(caught.value)
    assert "worker" not in str(caught.value)
    path.unlink()
    with pytest.raises(DataError, match="No such file or directory"):
        list(data.train.batches(4))


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "CMYK", "YCbCr", "I;16", "I"])
def test_images_of_every_kind_become_red_green_blue(tmp_path, mode):
    gray = np.linspace(0, 255, 64).astype(np.uint8).reshape(8, 8)
    ending = {"CMYK": "jpg", "YCbCr": "jpg", "I": "tiff"}.get(mode, "png")
    path = tmp_path / f"one.{ending}"
    if mode == "I;16":
        image = Image.fromarray(gray.astype(np.uint16) * 257)
    elif mode == "I":
        image = Image.fromarray(gray.astype(np.int32) * 257)
    elif mode == "P":
        image = Image.fromarray(gray).convert("P", palette=Image.Palette.ADAPTIVE)
        image.info["transparency"] = 3
    else:
        image = Image.fromarray(np.stack([gray] * 3, axis=-1)).convert(mode)
    image.save(path, **({"quality": 100} if path.suffix == ".jpg" else {}))
    found = read_image(str(path))
    assert found.mode == "RGB"
    pixels = np.asarray(found).astype(int)
    assert pixels.shape == (8, 8, 3)
    if mode != "1":
        assert np.abs(pixels - gray[..., np.newaxis]).max() <= 16


def test_of_an_animation_the_first_image_is_taken(tmp_path):
    frames = [Image.new("RGB", (8, 8), (value, 0, 0)) for value in (250, 10)]
    frames[0].save(tmp_path / "one.gif", save_all=True, append_images=frames[1:])
    os.rename(tmp_path / "one.gif", tmp_path / "one.png")
    assert np.asarray(read_image(str(tmp_path / "one.png")))[0, 0, 0] > 200


def test_images_are_read_for_so_long_and_no_longer(root, monkeypatch):
    paths = load(root).train.paths
    clock = iter(range(1000))
    monkeypatch.setattr(reading.time, "monotonic", lambda: next(clock))
    wrong, count = damaged(paths, seconds=4)
    assert (wrong, count) == ([], 4)


# --- doctor ---------------------------------------------------------------------------------

STUDY = """
name = "pictures"
[model]
name = "small_cnn"
[data]
name = "folder"
root = "pictures"
image_size = 8
validation = 3
workers = 0
"""


def test_doctor_looks_at_images(root, bo_act, monkeypatch):
    monkeypatch.chdir(root.parent)
    Path("pictures.toml").write_text(STUDY)
    code, out, _ = bo_act("doctor", "pictures.toml", "--json")
    assert '"found": "30 of 30 read"' in out
    bad = [root / part / CLASS / "2.JPEG" for part in ("train", "val")]
    for path in bad:
        path.write_bytes(b"no image")
    code, out, _ = bo_act("doctor", "pictures.toml", "--json")
    assert code == 1
    assert "30 of 30 read, 2 damaged" in out
    assert all(str(path.relative_to(root.parent)) in out for path in bad)
    shutil.rmtree(root / "val")
    code, out, _ = bo_act("doctor", "pictures.toml")
    assert code == 1
    assert "test images" in out
    assert "Traceback" not in out
