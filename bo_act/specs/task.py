"""The task: network, data, recipe."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from bo_act.errors import nearest
from bo_act.specs.base import Count, Fraction, PositiveFloat, PositiveInt, Seed, Spec

SMALL_SETS = ("digits", "diabetes", "breast_cancer", "friedman1", "python_topics")
FILE_SETS = ("mnist", "fashion_mnist", "cifar10", "cifar100")
FOLDER_SETS = ("imagenette", "imagenet", "folder")
OWN_SET = re.compile(r".+\.py:[A-Za-z_]\w*")


class ModelSpec(Spec):
    """A network: a name in ``models/`` or a path, and options passed on to its ``build``.

    Attributes:
        init: initial weights: as the network draws them (``default``), of He et al. 2015
            (``kaiming``), or scaled so that each layer's outputs have unit variance behind the
            function (``unit_variance``).
    """

    name: Annotated[str, Field(min_length=1)]
    options: dict[str, Any] = Field(default_factory=dict)
    init: Literal["default", "kaiming", "unit_variance"] = "default"


class ActivationSpec(Spec):
    """Options of the searched function besides its formula.

    Attributes:
        learnable: train scales of input and output with the network, from 1: one for each
            ``layer`` or ``channel``; ``none`` has no scales. They are outside of weight decay.
        scale_operators: a scale at each inner operator as well.
        channel_dim: where channels are; default: dimension 1 of inputs with four axes and more,
            else the last one.
    """

    learnable: Literal["none", "layer", "channel"] = "none"
    scale_operators: bool = False
    channel_dim: int | None = None

    @model_validator(mode="after")
    def _of_scales(self) -> ActivationSpec:
        if self.learnable == "none" and (self.scale_operators or self.channel_dim is not None):
            raise ValueError(
                "scale_operators and channel_dim need learnable = 'layer' or 'channel'"
            )
        return self

    @property
    def options(self) -> dict[str, Any]:
        """Options of ``Activation``."""
        return self.model_dump() if self.is_learnable else {}

    @property
    def is_learnable(self) -> bool:
        """Whether there are scales."""
        return self.learnable != "none"


class DataSpec(Spec):
    """A data set and its split. Test samples are not affected.

    Attributes:
        name: one of ``SMALL_SETS``, ``FILE_SETS`` or ``FOLDER_SETS``, or your own
            ``FILE.py:FUNCTION``.
        root: folder of the files; default: ``data`` in the cache folder.
        download: fetch the files when they are missing.
        train: at most that many training samples (default: all that validation leaves).
        validation: number of samples held out of the training set for validation.
        image_size: side in pixels to which images are average-pooled or padded (default: as is);
            images in folders are cropped to it.
        context: characters of a sample of text (default: 64).
        standardize: scale to mean 0 and standard deviation 1, by the training samples: each
            channel or column of the inputs (``inputs``), each number of the targets of a
            regression (``targets``; its errors are in these units, then), ``both``, or ``none``.
            ``auto``: images in memory, the inputs of ``diabetes``, ``breast_cancer`` and
            ``friedman1``, the targets of ``diabetes`` and ``friedman1``, and nothing else.
        seed: decides which samples are held out.
        workers: processes that read images in folders, or your own ``Dataset``; samples in memory
            need none.
    """

    name: str
    root: Path | None = None
    download: bool = False
    train: PositiveInt | None = None
    validation: PositiveInt | None = None
    image_size: PositiveInt | None = None
    context: PositiveInt | None = None
    standardize: Literal["auto", "none", "inputs", "targets", "both"] = "auto"
    seed: Seed = 0
    workers: Count = 4

    @field_validator("name")
    @classmethod
    def _known(cls, name: str) -> str:
        if name in (*SMALL_SETS, *FILE_SETS, *FOLDER_SETS) or OWN_SET.fullmatch(name):
            return name
        known = (*SMALL_SETS, *FILE_SETS, *FOLDER_SETS)
        shown = name if len(name) <= 60 else name[:57] + "..."
        raise ValueError(
            f"expected {', '.join(known)}, or your own FILE.py:FUNCTION, got "
            f"{shown!r}{nearest(name, known)}"
        )

    @property
    def own(self) -> bool:
        """Whether the user's own function loads the samples."""
        return OWN_SET.fullmatch(self.name) is not None

    @property
    def in_folders(self) -> bool:
        """Whether images are read from folders as needed, instead of kept in memory."""
        return self.name in FOLDER_SETS


class AugmentationSpec(Spec):
    """Random changes of training images. Nothing is done by default.

    Attributes:
        flip: mirror left and right with probability 1/2.
        shift: move by up to so many pixels, both ways; pixels beyond the border are reflected.
            For images in memory.
        cutout: side in pixels of a square that is set to the mean. For images in memory.
        crop: least share of the area that is cropped and scaled to the image's size. For images
            in folders.
        randaugment: operations of RandAugment on each image. For images in folders.
        magnitude: of these operations, 0 to 30.
        mixup, cutmix: parameter of the Beta distribution of shares; 0 is off. If both are on, a
            coin decides for each batch.
    """

    flip: bool = False
    shift: Count = 0
    cutout: Count = 0
    crop: Annotated[float, Field(gt=0, le=1)] | None = None
    randaugment: Count = 0
    magnitude: Annotated[int, Field(ge=0, le=30)] = 9
    mixup: Annotated[float, Field(ge=0)] = 0.0
    cutmix: Annotated[float, Field(ge=0)] = 0.0

    @property
    def mixing(self) -> tuple[float, float]:
        """Beta parameters of mixup and CutMix."""
        return self.mixup, self.cutmix

    def misfit(self, *, in_folders: bool) -> str | None:
        """Return the first key that does not apply to images of this kind."""
        wrong = ("shift", "cutout") if in_folders else ("crop", "randaugment")
        return next((key for key in wrong if getattr(self, key)), None)


class TrainingSpec(Spec):
    """The training recipe of a network.

    Attributes:
        learning_rate: the peak of the schedule.
        warmup: share of all steps in which the learning rate rises; ``constant`` has none.
        cooldown: share of all steps, at the end, with the final learning rate.
        final_learning_rate: where the schedule ends; default: 0 (``cosine``), or the peak divided
            by 250,000 (``one_cycle``).
        loss: to minimize. ``auto`` decides by the targets: cross-entropy for whole numbers,
            which are classes (n,) or tokens (n, T), and mean squared error (``mse``) for
            floating-point ones. ``binary_cross_entropy`` takes logits of 0/1 labels, (n,) or (n,
            k); ``mae`` is the mean absolute error.
        label_smoothing: of cross-entropy.
        decay: weights with ``weight_decay``: ``all``, or ``matrices``, without norms and biases.
        gradient_clip: largest norm of all gradients together.
        ema: decay per step of the moving average of the weights, which is validated and returned
            instead of them; 0 has none.
        collapse_epochs: epochs with the accuracy and the loss of guessing a class after which
            training ends as diverged; 0 never does.
        micro_batch: samples per forward pass, with gradients summed up to ``batch_size``; default:
            all. Batch statistics are then of the smaller batches.
        device: ``auto`` takes the GPU where there is one.
        precision: ``auto`` is bfloat16 autocast on a GPU and float32 on a CPU.
        channels_last: images and convolutions with the channels innermost in memory.
        compile: the network, or only its activation functions, by torch.compile; if that fails,
            training warns and continues without.
        deterministic: only deterministic kernels: the same numbers bit for bit on the same GPU.
        threads: CPU threads for training; default: torch's own choice.
    """

    epochs: PositiveInt = 10
    batch_size: PositiveInt = 128
    optimizer: Literal["sgd", "adamw"] = "sgd"
    learning_rate: PositiveFloat = 0.05
    momentum: Fraction = 0.9
    nesterov: bool = True
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    decay: Literal["all", "matrices"] = "all"
    schedule: Literal["one_cycle", "cosine", "constant"] = "one_cycle"
    warmup: Fraction = 0.3
    cooldown: Fraction = 0.0
    final_learning_rate: Annotated[float, Field(ge=0)] | None = None
    loss: Literal["auto", "cross_entropy", "binary_cross_entropy", "mse", "mae"] = "auto"
    label_smoothing: Fraction = 0.0
    gradient_clip: PositiveFloat | None = None
    ema: Fraction = 0.0
    collapse_epochs: Count = 0
    micro_batch: PositiveInt | None = None
    device: Annotated[str, Field(pattern=r"^(auto|cpu|mps|cuda(:\d+)?)$")] = "auto"
    precision: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    channels_last: bool = False
    compile: Literal["none", "network", "activation"] = "none"
    deterministic: bool = False
    threads: PositiveInt | None = None
