"""Data of any form: tables, tokens, several tensors by name, and a Dataset of one's own."""

from __future__ import annotations

import math
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from bo_act.data.loading import Data, load_data
from bo_act.data.samples import SampleSet
from bo_act.errors import DataError
from bo_act.specs import AugmentationSpec, DataSpec, TrainingSpec
from bo_act.training.trainer import train

HEAD = """
import random
import numpy as np
import torch
from torch.utils.data import Dataset, IterableDataset, TensorDataset

N = 0
def drawn(*shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(N))

class Items(Dataset):
    def __init__(self, make, count):
        self.make, self.count = make, count
    def __len__(self):
        return self.count
    def __getitem__(self, index):
        if not 0 <= index < self.count:
            raise IndexError(index)
        return self.make(index)

class Endless(IterableDataset):
    def __iter__(self):
        return iter([])

def load(*, train):
    global N
    N = 40 if train else 20
    labels = torch.arange(N) % 4
    rows, tokens = drawn(N, 5), torch.arange(N * 6).reshape(N, 6) % 11
"""


@pytest.fixture
def load(tmp_path, monkeypatch):
    """Load what a function returns."""
    monkeypatch.chdir(tmp_path)

    def load(returned: str, *, loss: str = "auto", lines: str = "", **values: object) -> Data:
        body = "".join(f"    {line}\n" for line in lines.splitlines())
        Path("mine.py").write_text(f"{HEAD}{body}    return {returned}\n")
        values = {"name": "mine.py:load", "workers": 0} | values
        return load_data(DataSpec(**values), loss=loss)

    return load


OUT = {"num_classes": 4, "out_features": 4}
TABLE = {"in_features": 5, "input_shape": (5,)}
TOKENS = {"vocabulary": 11, "context": 6, "input_shape": (6,)}


@pytest.mark.parametrize(
    ("returned", "loss", "kind", "facts"),
    [
        ("rows, labels", "auto", "classes", OUT | TABLE),
        ("rows.numpy().astype('float64'), labels.numpy()", "auto", "classes", OUT | TABLE),
        ("rows.tolist(), labels.tolist()", "auto", "classes", OUT | TABLE),
        ("rows, labels > 1", "auto", "classes", TABLE | {"num_classes": 2, "out_features": 2}),
        ("rows, rows[:, 0]", "auto", "numbers", TABLE | {"out_features": 1}),
        ("rows, rows[:, :3]", "auto", "numbers", TABLE | {"out_features": 3}),
        ("rows, labels", "mse", "numbers", TABLE | {"out_features": 1}),
        ("rows, labels", "mae", "numbers", TABLE | {"out_features": 1}),
        ("rows, (rows > 0)", "binary_cross_entropy", "labels", TABLE | {"out_features": 5}),
        ("rows, labels % 2", "binary_cross_entropy", "labels", TABLE | {"out_features": 1}),
        ("tokens, labels", "auto", "classes", OUT | TOKENS),
        ("tokens.int(), tokens", "auto", "tokens", TOKENS | {"out_features": 11}),
        ("tokens.byte(), tokens + 2", "auto", "tokens",
         TOKENS | {"vocabulary": 13, "out_features": 13}),
        ("tokens[:, :1], tokens[:, :1]", "auto", "tokens",
         TOKENS | {"out_features": 11, "context": 1, "input_shape": (1,)}),
        ("drawn(N, 6, 3), tokens", "auto", "tokens",
         {"in_features": 18, "input_shape": (6, 3), "out_features": 11}),
        ("drawn(N, 2, 6, 4), labels", "auto", "classes",
         OUT | {"in_features": 48, "input_shape": (2, 6, 4)}),
        ("drawn(N), labels", "auto", "classes", OUT | {"in_features": 1, "input_shape": ()}),
        ("{'ids': tokens, 'mask': tokens > 3}, labels", "auto", "classes",
         OUT | {"vocabulary": 11, "context": 6, "input_shape": {"ids": (6,), "mask": (6,)}}),
        ("(rows, tokens), labels", "auto", "classes",
         OUT | {"vocabulary": 11, "context": 6, "input_shape": {0: (5,), 1: (6,)}}),
        ("drawn(N, 1, 8, 8).sigmoid(), rows[:, 0]", "auto", "numbers",
         {"in_channels": 1, "image_size": 8, "in_features": 64, "out_features": 1}),
        ("TensorDataset(rows, labels)", "auto", "classes", OUT | TABLE),
        ("TensorDataset(rows, tokens, labels)", "auto", "classes",
         OUT | {"vocabulary": 11, "context": 6, "input_shape": {0: (5,), 1: (6,)}}),
        ("Items(lambda i: (rows[i], labels[i]), N)", "auto", "classes", OUT | TABLE),
        ("Items(lambda i: (rows[i].double().numpy(), int(labels[i])), N)", "auto", "classes",
         OUT | TABLE),
        ("Items(lambda i: [tokens[i].tolist(), tokens[i]], N)", "auto", "tokens",
         TOKENS | {"out_features": 11}),
        ("Items(lambda i: ({'ids': tokens[i]}, float(i)), N)", "auto", "numbers",
         {"vocabulary": 11, "context": 6, "input_shape": {"ids": (6,)}, "out_features": 1}),
        ("Items(lambda i: (torch.rand(3, 8, 8), labels[i]), N)", "auto", "classes",
         OUT | {"in_channels": 3, "image_size": 8, "in_features": 192}),
    ],
)  # fmt: skip
def test_data_of_any_form_are_taken_with_their_facts(load, returned, loss, kind, facts):
    data = load(returned, loss=loss)
    assert data.kind == kind
    assert data.facts == facts
    assert (len(data.train), len(data.validation), len(data.load_test())) == (36, 4, 20)
    again = load(returned, loss=loss)
    assert again.digest == data.digest
    assert load(returned, loss=loss, seed=1).digest != data.digest
    inputs, targets = data.train.take(torch.tensor([3, 0]))
    batches = list(data.train.batches(10, order=torch.tensor([3, 0])))
    torch.testing.assert_close(batches[0][0], inputs)
    assert torch.equal(batches[0][1], targets)
    parts = [targets for _, targets in data.validation.batches(3)]
    assert torch.equal(torch.cat(parts), data.validation.targets)


@pytest.mark.parametrize(
    ("returned", "says"),
    [
        ("Endless()", "a Dataset without a length"),
        ("Items(None, 0)", "without a length, or empty"),
        ("Items(lambda i: 1 / 0, N)", r"item 0 of its Dataset cannot be read: ZeroDivisionError"),
        ("Items(lambda i: rows[i], N)", "expected a pair of inputs and target, got"),
        ("Items(lambda i: (rows[i], 1, 2), N)", "expected a pair of inputs and target, got 3"),
        ("Items(lambda i: ('text', 1), N)", "item 0 of its Dataset cannot be read"),
        ("Items(lambda i: (rows[i], rows[i, :i]), N)", "expected targets of equal shape"),
        ("Items(lambda i: (rows[i, :1 + i % 5], 1 * (i > 9)), N)", "samples of equal shape"),
    ],
)
def test_a_dataset_that_cannot_be_read_is_told(load, returned, says):
    with pytest.raises(DataError, match=says) as caught:
        load(returned)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("returned", "values", "says"),
    [
        ("rows, labels", {"image_size": 8}, "data.image_size needs square images"),
        ("rows, labels", {"context": 8}, "data.context is for text"),
        ("rows, labels", {"standardize": "both"}, "targets of 'mine.py:load' are classes, not num"),
        ("tokens, labels", {"standardize": "inputs"}, "are not floating-point numbers"),
        (
            "Items(lambda i: (rows[i], 1), N)",
            {"standardize": "inputs"},
            "which must do this itself",
        ),
        ("torch.rand(N, 1, 8, 8) * 9, labels", {}, "any numbers as they are, set data.standardize"),
    ],
)
def test_what_is_for_other_data_is_refused(load, returned, values, says):
    with pytest.raises(DataError, match=says):
        load(returned, **values)


def test_images_alone_are_augmented(load):
    load("rows, labels")
    for name in ("mine.py:load", "diabetes"):
        with pytest.raises(DataError, match="augmentation needs square images"):
            load_data(DataSpec(name=name), AugmentationSpec(flip=True))
    load("torch.rand(N, 1, 8, 8), rows[:, 0]")
    with pytest.raises(DataError, match="augmentation needs images with classes"):
        load_data(DataSpec(name="mine.py:load"), AugmentationSpec(flip=True))


def test_standardization_is_by_the_training_samples_and_only_where_it_is_asked_for(load):
    lines = "rows = rows * torch.tensor([1., 9., 1e-9, 0., 1e6]) + 3"
    y = "rows[:, 4]"
    plain = load(f"rows, {y}", lines=lines)
    both = load(f"rows, {y}", lines=lines, standardize="both")
    x, z = both.train.inputs.double(), both.train.targets.double()
    assert x.mean(0).abs().max() < 1e-3
    assert (x.std(0, correction=0) - torch.tensor([1, 1, 1, 0, 1])).abs()[[0, 1, 4]].max() < 1e-3
    assert torch.equal(x[:, 3], torch.zeros(36).double())  # no division by zero
    assert (abs(float(z.mean())), float(z.std(correction=0))) == pytest.approx((0, 1), abs=1e-3)
    shift, scale = (
        plain.train.targets.double().mean(),
        plain.train.targets.double().std(correction=0),
    )
    for one, other in ((both.validation, plain.validation), (both.load_test(), plain.load_test())):
        expected = (other.targets.double() - shift) / scale
        torch.testing.assert_close(one.targets.double(), expected, atol=1e-4, rtol=1e-4)
    assert torch.equal(load(f"rows, {y}", lines=lines, standardize="inputs").train.targets,
                       plain.train.targets)  # fmt: skip
    images = "torch.rand(N, 1, 8, 8, generator=torch.Generator().manual_seed(N)) * 9 - 4, labels"
    raw = load(images, standardize="none").train.inputs
    assert raw.min() < -3.5
    assert raw.max() > 4.5
    assert abs(float(load(images, standardize="inputs").train.inputs.mean())) < 1e-4


@pytest.mark.parametrize("workers", [0, 2])
def test_what_a_dataset_draws_follows_from_seed_epoch_and_index(load, workers):
    make = "(rows[i] + torch.randn(5) + random.random() + np.random.rand(), labels[i])"
    data = load(f"Items(lambda i: {make}, N)", workers=workers)
    states = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()

    def drawn(order: list[int], draw: tuple[int, int] | None) -> torch.Tensor:
        found = data.train.batches(2, order=torch.tensor(order), draw=draw)
        return torch.cat([inputs for inputs, _ in found])[torch.tensor(order).argsort()]

    first = drawn([0, 1, 2], (7, 0))
    assert torch.equal(first, drawn([2, 0, 1], (7, 0)))
    assert not torch.equal(first, drawn([0, 1, 2], (7, 1)))
    assert not torch.equal(first, drawn([0, 1, 2], (8, 0)))
    assert torch.equal(drawn([0, 1, 2], None), data.train.take(torch.tensor([0, 1, 2]))[0])
    assert torch.equal(torch.get_rng_state(), states[0])
    assert (random.getstate(), np.random.get_state()[1].tolist()) == states[1:]


def test_targets_that_a_dataset_knows_are_not_read(load):
    lines = "items = Items(lambda i: (rows[i], 1 / 0 if i > 39 else labels[i]), N)\n"
    known = "items.targets = labels.tolist()\nitems.make = lambda i: (rows[i], labels[i])"
    assert load("items", lines=lines + known).num_classes == 4


# --- trained --------------------------------------------------------------------------------


class OfDict(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.ids, self.out = nn.Embedding(11, 8), nn.Linear(8, 4)

    def forward(self, *, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        return self.out((self.ids(ids) * mask[..., None]).mean(1))


def test_dicts_are_what_the_network_is_called_with(load):
    data = load("{'mask': tokens > 3, 'ids': tokens}, labels")
    spec = TrainingSpec(epochs=3, batch_size=9, device="cpu", threads=1, micro_batch=4)
    result = train(OfDict(), data, spec, seed=0)
    assert result.train_loss[-1] < result.train_loss[0]


def test_a_dataset_and_the_same_in_memory_train_alike(load):
    spec = TrainingSpec(epochs=2, batch_size=9, device="cpu", threads=1)
    results = []
    for returned in ("rows, labels", "Items(lambda i: (rows[i], labels[i]), N)"):
        data = load(returned)
        torch.manual_seed(0)
        results.append(train(nn.Linear(5, 4), data, spec, seed=0))
    assert results[0].train_loss == results[1].train_loss
    assert results[0].curve == results[1].curve


# --- those that are built in ------------------------------------------------------------------


def overlap(*parts: SampleSet) -> int:
    rows = [{row.numpy().tobytes() for row in part.inputs} for part in parts]
    return sum(map(len, rows)) - len(set.union(*rows))


@pytest.mark.parametrize(
    ("name", "sizes"),
    [
        ("diabetes", (254, 100, 88)),
        ("breast_cancer", (355, 100, 114)),
        ("friedman1", (12_000, 4_000, 4_000)),
    ],
)
def test_tables_are_split_into_three_and_standardized(name, sizes):
    data = load_data(DataSpec(name=name))
    parts = data.train, data.validation, data.load_test()
    assert tuple(map(len, parts)) == sizes
    assert overlap(*parts) == 0
    assert data.train.inputs.mean(0).abs().max() < 1e-4
    other = load_data(DataSpec(name=name, seed=1))
    assert other.digest != data.digest
    assert torch.equal(load_data(DataSpec(name=name)).load_test().targets, parts[2].targets)
    if name != "breast_cancer":
        assert abs(float(data.train.targets.mean())) < 1e-5
        assert 0.8 < data.worst("mse") < 1.4  # of predicting the mean, in these units
    else:
        shares = [float(part.targets.float().mean()) for part in parts]
        assert max(shares) - min(shares) < 0.02


def test_topics_are_pythons_text_in_order():
    from pydoc_data.topics import topics

    text = "\n".join(topics[name] for name in sorted(topics))
    data = load_data(DataSpec(name="python_topics", context=32))
    letters = sorted(set(text))
    assert data.facts == {
        "vocabulary": len(letters), "context": 32, "out_features": len(letters),
        "input_shape": (32,),
    }  # fmt: skip
    parts = [data.train, data.validation, data.load_test()]
    read = ["".join(letters[int(i)] for i in part.inputs.flatten()) for part in parts]
    assert text.startswith(read[0] + read[1])  # contiguous, in this order
    assert text[len(read[0] + read[1]) :].find(read[2]) in range(64)
    for part in parts:
        assert torch.equal(part.inputs.flatten()[1:], part.targets.flatten()[:-1])
    lengths = [len(one) / len(text) for one in read]
    assert lengths == pytest.approx([0.8, 0.1, 0.1], abs=0.001)
    assert data.worst("bits_per_token") == math.log2(len(letters))
    few = load_data(DataSpec(name="python_topics", context=32, train=100, validation=50))
    assert (len(few.train), len(few.validation)) == (100, 50)
    assert torch.equal(few.load_test().inputs, parts[2].inputs)
    with pytest.raises(DataError, match=r"data\.validation: expected fewer than"):
        load_data(DataSpec(name="python_topics", validation=10**6))
