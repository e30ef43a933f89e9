"""Networks of torchvision, timm and transformers, by name, with random weights."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from bo_act.dependencies.extras import require_extra
from bo_act.errors import NetworkError, nearest
from bo_act.networks.replacement import replace

LIBRARIES = ("torchvision", "timm", "transformers")
PRETRAINED = ("pretrained", "weights", "weights_backbone", "checkpoint_path", "pretrained_cfg")
OURS = {
    "num_classes": "the data set's classes are taken",
    "in_chans": "the data set's channels are taken",
    "in_channels": "the data set's channels are taken",
    "img_size": "the data set's image size is taken",
    "image_size": "the data set's image size is taken",
    "input_size": "the data set's image size is taken",
    "num_labels": "the data set's classes are taken",
    "id2label": "the data set's classes are taken",
    "label2id": "the data set's classes are taken",
    "num_channels": "the data set's channels are taken",
    "act_layer": "the searched function takes the place of every activation layer",
    "activation_layer": "the searched function takes the place of every activation layer",
    "hidden_act": "the searched function takes the place of every activation layer",
}


def split_name(name: str) -> tuple[str, str] | None:
    """Return library and network of a name such as ``timm:NAME``, else None."""
    library, colon, network = name.partition(":")
    return (library, network) if colon and library in LIBRARIES else None


def source_of(name: str) -> bytes:
    """Return name and library version of such a network, instead of a file.

    Raises:
        NetworkError: the library is not installed, or has no such network for classification.
    """
    library, network = name.split(":", 1)
    version, known = _known(library)
    if network not in known:
        if library == "transformers" and network in _all_of_transformers():
            raise NetworkError(
                f"{name}: transformers {version} has no image classifier of this kind "
                "(pixel_values in, logits out); from Python, bo_act.replace_activations(network, "
                "...) takes any network"
            )
        hint = nearest(network, known) or f"; it has {len(known)} networks for classification"
        raise NetworkError(f"{name}: {library} {version} has no network {network!r}{hint}")
    return f"{name} of {library} {version}".encode()


def check_options(name: str, options: Mapping[str, Any]) -> None:
    """Refuse pretrained weights, and options with another place in the study file.

    Raises:
        NetworkError: there is such an option.
    """
    for option, value in options.items():
        if option in PRETRAINED:
            raise NetworkError(
                f"{name}: option {option!r} is refused, got {value!r}: pretrained weights belong "
                "to another activation function, and networks here start from random weights; "
                "leave it out"
            )
        if option in OURS:
            raise NetworkError(
                f"{name}: option {option!r} is refused: {OURS[option]}; leave it out"
            )


def build_function(name: str) -> Callable[..., nn.Module]:
    """Return ``build`` of such a network, as in model files."""
    library, network = name.split(":", 1)
    create = {"torchvision": _torchvision, "timm": _timm, "transformers": _transformers}[library]

    def build(
        activation: Callable[[], nn.Module],
        *,
        in_channels: int,
        image_size: int,
        num_classes: int,
        **options: Any,
    ) -> nn.Module:
        built = create(network, in_channels, image_size, num_classes, options)
        image = (in_channels, image_size, image_size)
        replace_in_classifier(built, activation, name=name, image=image, num_classes=num_classes)
        return built

    return build


def replace_in_classifier(
    network: nn.Module,
    activation: Callable[[], nn.Module],
    *,
    name: str,
    image: tuple[int, int, int],
    num_classes: int,
) -> None:
    """Replace all activation functions of a network from images to logits.

    Args:
        network: changed in place.
        activation: returns a fresh module.
        name: of the network, for messages.
        image: shape (c, h, w) of the images of a trial pass.
        num_classes: number of logits per image.

    Raises:
        NetworkError: there is nothing to replace, or the network does not return logits
            (b, num_classes) in training.
    """
    images = torch.zeros(2, *image, device="cpu", dtype=torch.float32)
    try:
        _, outputs = replace(network, lambda _: activation, inputs=images)
        _check_logits(outputs, num_classes)
    except NetworkError as error:
        raise NetworkError(f"{name}: {error}") from error


@cache
def _known(library: str) -> tuple[str, frozenset[str]]:
    if library == "torchvision":
        import torchvision
        from torchvision import models

        version = torchvision.__version__
        known = models.list_models(module=models)
    elif library == "timm":
        timm = _imported("timm")
        version, known = timm.__version__, timm.list_models()
    else:
        transformers = _imported("transformers")
        from transformers.models.auto import modeling_auto

        version = transformers.__version__
        known = modeling_auto.MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES
    return version.split("+")[0], frozenset(known)  # "+cu130" is not another network


def _imported(library: str) -> Any:
    return require_extra(library, f"a network {library}:NAME")


def _all_of_transformers() -> Any:
    from transformers.models.auto import configuration_auto

    return vars(configuration_auto)["CONFIG_MAPPING_NAMES"]


def _torchvision(
    name: str, in_channels: int, image_size: int, num_classes: int, options: Mapping[str, Any]
) -> nn.Module:
    from torchvision import models

    sized: dict[str, Any] = {}
    if name.startswith("vit_"):
        sized = {"image_size": image_size}
    elif name.startswith("maxvit"):
        sized = {"input_size": (image_size, image_size)}
    if "init_weights" in inspect.signature(models.get_model_builder(name)).parameters:
        sized["init_weights"] = True
    network: nn.Module = models.get_model(
        name, weights=None, num_classes=num_classes, **sized, **options
    )
    if in_channels != 3:
        _other_channels(network, name, in_channels)
    return network


def _other_channels(network: nn.Module, name: str, in_channels: int) -> None:
    """Let the first convolution read other channels, with outputs of the same variance."""
    layer = next((module for module in network.modules() if isinstance(module, nn.Conv2d)), None)
    if layer is None:
        raise NetworkError(f"torchvision:{name}: no convolution reads the image's channels")
    if layer.in_channels != 3 or layer.groups != 1:
        raise NetworkError(
            f"torchvision:{name}: expected its first convolution to read 3 channels, "
            f"got {layer.in_channels}; this network cannot take images of {in_channels} channels"
        )
    deviation = float(layer.weight.detach().std()) * (3 / in_channels) ** 0.5
    weight = layer.weight.detach().new_empty(layer.out_channels, in_channels, *layer.kernel_size)
    layer.weight = nn.Parameter(nn.init.normal_(weight, std=deviation))
    layer.in_channels = in_channels


def _timm(
    name: str, in_channels: int, image_size: int, num_classes: int, options: Mapping[str, Any]
) -> nn.Module:
    timm = _imported("timm")
    shape = {"in_chans": in_channels, "num_classes": num_classes}
    try:
        network: nn.Module = timm.create_model(
            name, pretrained=False, img_size=image_size, **shape, **options
        )
    except TypeError as error:
        if "img_size" not in str(error):
            raise
        # Purely convolutional networks take any size, and have no such argument.
        network = timm.create_model(name, pretrained=False, **shape, **options)
    return network


class Classifier(nn.Module):
    """A network of transformers, from images to logits."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Any:
        """Return logits (b, classes)."""
        return self.network(pixel_values=images).logits


def _transformers(
    name: str, in_channels: int, image_size: int, num_classes: int, options: Mapping[str, Any]
) -> nn.Module:
    transformers = _imported("transformers")
    known = vars(transformers.AutoConfig.for_model(name))
    for option in options:  # a configuration accepts unknown options silently
        if option not in known:
            raise NetworkError(
                f"transformers:{name}: unknown option {option!r}{nearest(option, known)}; see the "
                f"options of {transformers.AutoConfig.for_model(name).__class__.__name__}"
            )
    config = transformers.AutoConfig.for_model(
        name, num_channels=in_channels, image_size=image_size, num_labels=num_classes, **options
    )
    return Classifier(transformers.AutoModelForImageClassification.from_config(config))


def _check_logits(outputs: Any, num_classes: int) -> None:
    """Refuse a network that does not return logits in training.

    Args:
        outputs: of the trial pass on two images.
        num_classes: number of logits per image.

    Raises:
        NetworkError: it does not.
    """
    if not isinstance(outputs, Tensor) or outputs.shape != (2, num_classes):
        came = tuple(outputs.shape) if isinstance(outputs, Tensor) else type(outputs).__name__
        raise NetworkError(
            f"expected logits (2, {num_classes}) for two images in training, got {came}"
        )
