"""Data sets of scikit-learn and of Python itself, without a download.

Their test parts are the same in every study; the study's seed splits the rest.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bo_act.data.source import Part, Source
from bo_act.data.split import others, stratified_sample
from bo_act.specs import DataSpec

TEST_SHARE = 0.2
TEST_SEED = 1797  # fixed, so that every study has the same test samples
TEXT_SHARE = 0.1
"""Of a text, for the test and again for the validation: its last part, and the one before."""
CONTEXT = 64
FRIEDMAN_ROWS = 20_000
FRIEDMAN_SEED = 1991


def open_small(spec: DataSpec) -> Source:
    """Return one of these data sets."""
    if spec.name == "digits":
        return Source(partial(_digits, False), partial(_digits, True), 16, 10, 300)
    if spec.name == "python_topics":
        return _topics(spec.context or CONTEXT)
    read = partial(_table, spec.name)
    standardized = "inputs" if spec.name == "breast_cancer" else "both"
    held_out = FRIEDMAN_ROWS // 5 if spec.name == "friedman1" else 100
    return Source(
        partial(read, False), partial(read, True), validation=held_out, standardized=standardized
    )


def _digits(test: bool) -> Part:
    from sklearn.datasets import load_digits

    content = load_digits()
    images = torch.from_numpy(content.images).to(torch.uint8).unsqueeze(1)
    return _part(images, torch.from_numpy(content.target).long(), test, stratified=True)


def _table(name: str, test: bool) -> Part:
    """Return a part of a table.

    Diabetes: 442 patients, 10 numbers each, and the disease progression in a year (Efron et al.
    2004). Breast cancer (Wisconsin): 569 samples, 30 numbers each, malignant or benign. Friedman 1
    (Friedman 1991): 20,000 rows of 10 uniform numbers, and a function of five of them, without
    noise.
    """
    from sklearn import datasets

    if name == "friedman1":
        inputs, values = datasets.make_friedman1(FRIEDMAN_ROWS, random_state=FRIEDMAN_SEED)
        rows, targets = torch.from_numpy(inputs).float(), torch.from_numpy(values).float()
        return _part(rows, targets, test, stratified=False)
    load: Callable[[], Any] = getattr(datasets, f"load_{name}")
    content = load()
    rows = torch.from_numpy(content.data).float()
    if name == "diabetes":
        return _part(rows, torch.from_numpy(content.target).float(), test, stratified=False)
    return _part(rows, torch.from_numpy(content.target).long(), test, stratified=True)


def _part(inputs: Tensor, targets: Tensor, test: bool, *, stratified: bool) -> Part:
    generator = torch.Generator().manual_seed(TEST_SEED)
    strata = targets if stratified else torch.zeros_like(targets)
    chosen = stratified_sample(strata, round(TEST_SHARE * len(targets)), generator)
    if not test:
        chosen = others(len(targets), chosen)
    return inputs[chosen], targets[chosen]


def _topics(context: int) -> Source:
    """Return Python's language reference, from ``help``, character by character.

    The text depends on the Python version, so values of different versions are not comparable:
    their digests differ. A sample is ``context`` characters, and its targets are the next
    characters.
    """
    from pydoc_data.topics import topics

    text = "\n".join(topics[name] for name in sorted(topics))
    points = np.frombuffer(text.encode("utf-32-le"), dtype=np.uint32)
    known, places = np.unique(points, return_inverse=True)
    tokens = torch.from_numpy(places.astype(np.int64))
    end = len(tokens) - round(TEXT_SHARE * len(tokens))

    def part(ids: Tensor) -> Part:
        count = (len(ids) - 1) // context
        whole = ids[: count * context + 1]
        return whole[:-1].reshape(count, context), whole[1:].reshape(count, context)

    held_out = round(TEXT_SHARE * len(tokens)) // context
    return Source(
        lambda: part(tokens[:end]),
        lambda: part(tokens[end:]),
        classes=len(known),
        validation=held_out,
        in_order=True,
    )
