"""What trains with what: networks of torchvision and timm by functions that keep their output.

Each network is built as a study builds it, on the smallest images that it takes, with every
function in turn: a forward and a backward pass in training mode. Logits and the gradients of all
weights are compared with those of a network whose functions work on copies, where nothing that
the network does in place can reach what they keep. ``equal`` says that they are the same numbers;
anything else is an error or a wrong gradient.

Every finished network is kept as one line of a file, so that a second call goes on where the
first one stopped.
"""

from __future__ import annotations

import argparse
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from kept import Kept
from torch import Tensor, nn

from bo_act.activations.module import Activation
from bo_act.errors import BoActError, NetworkError
from bo_act.fisher.kfac import kronecker_factors
from bo_act.networks import load_network
from bo_act.specs import ModelSpec

FUNCTIONS = {
    "relu": "relu(x)",
    "tanh": "tanh(x)",
    "sigmoid": "sigmoid(x)",
    "exp": "exp(negative(abs(x)))",
    "pow": "pow(softplus(x),sigmoid(x))",
    "identity": "x",
    "swish": "swish(x)",
    "composed": "mul(arctan(x),sigmoid(x))",
}
SIDES = (32, 64, 96, 128, 160, 224, 240, 256, 299)
FISHER_UP_TO = 8_000_000  # parameters; the factors of wider layers take gigabytes
OPTIONS: dict[str, dict[str, Any]] = {
    "torchvision:googlenet": {"aux_logits": False},
    "torchvision:inception_v3": {"aux_logits": False},
}
TIMM = [
    "resnet18", "resnet26d", "resnext50_32x4d", "seresnext26d_32x4d", "legacy_seresnet18",
    "skresnet18", "resnest14d", "res2net50_26w_4s", "regnetx_002", "regnety_002", "regnetz_005",
    "efficientnet_lite0", "efficientnet_b0", "tf_efficientnetv2_b0", "mobilenetv1_100",
    "mobilenetv2_035", "mobilenetv3_small_050", "mobilenetv4_conv_small_035", "mnasnet_small",
    "fbnetv3_b", "ghostnet_050", "lcnet_035", "tinynet_e", "hardcorenas_a", "mixnet_s",
    "rexnet_100", "repvgg_a0", "mobileone_s0", "fastvit_t8", "convnext_atto", "convnextv2_atto",
    "vit_tiny_patch16_224", "deit_tiny_patch16_224", "swin_tiny_patch4_window7_224",
    "coatnet_nano_rw_224", "mobilevit_xxs", "mobilevitv2_050", "edgenext_xx_small",
    "efficientformer_l1", "efficientformerv2_s0", "poolformer_s12", "mixer_s32_224",
    "resmlp_12_224", "gmlp_ti16_224", "levit_128s", "xcit_nano_12_p16_224", "pit_ti_224",
    "crossvit_tiny_240", "coat_lite_tiny", "dla46_c", "densenet121", "ese_vovnet19b_slim",
    "hrnet_w18_small", "selecsls42", "cspresnet50", "cs3darknet_s", "nf_regnet_b0",
    "eca_nfnet_l0", "xception41", "dpn48b", "inception_next_atto", "starnet_s1", "repvit_m0_9",
    "tiny_vit_5m_224", "hgnetv2_b0", "visformer_tiny", "gcresnext26ts", "botnet26t_256",
    "halonet26t", "lambda_resnet26t", "bat_resnext26ts", "gernet_s", "mobilenet_edgetpu_v2_xs",
    "nest_tiny", "convit_tiny", "twins_svt_small", "cait_xxs24_224", "pvt_v2_b0", "mvitv2_tiny",
    "focalnet_tiny_srf", "davit_tiny", "gcvit_xxtiny", "hiera_tiny_224", "shvit_s1",
    "mambaout_femto", "swiftformer_xs", "efficientvit_b0", "efficientvit_m0", "sequencer2d_s",
]  # fmt: skip


class Place(nn.Module):
    """Where a function stands; which one it is changes from pass to pass."""

    current: Callable[[Tensor], Tensor] = nn.SiLU()

    def forward(self, x: Tensor) -> Tensor:
        return Place.current(x)


def built(name: str) -> tuple[nn.Module, int]:
    """Return a network and the side of the smallest images that it takes."""
    builder = load_network(ModelSpec(name=name, options=OPTIONS.get(name, {})))
    failures = []
    for side in SIDES:
        try:
            network = builder(Place, in_channels=3, image_size=side, num_classes=10, seed=0)
            with torch.no_grad():
                network.train()(torch.zeros(2, 3, side, side))
        except (BoActError, RuntimeError, ValueError, AssertionError, IndexError) as error:
            failures.append(f"{side}: {error}")
            continue
        return network, side
    raise NetworkError(failures[-1])


def passes(network: nn.Module, images: Tensor) -> list[Tensor]:
    """Return the logits, and a digest of the gradients of every weight."""
    network.zero_grad(set_to_none=True)
    torch.manual_seed(0)  # dropout
    logits = network.train()(images)
    logits.square().mean().backward()
    digests = [torch.stack([g.sum(), g.norm()]).detach() for g in gradients(network)]
    network.zero_grad(set_to_none=True)
    return [logits.detach(), *digests]


def gradients(network: nn.Module) -> list[Tensor]:
    """Return the gradients of all weights that have one."""
    return [weight.grad for weight in network.parameters() if weight.grad is not None]


def outcome(network: nn.Module, images: Tensor, text: str) -> str:
    """Return ``equal``, or what is wrong with a function in the network.

    What differs in float32 is computed in float64 again: a network can amplify rounding errors,
    and a shift before a normalization layer has a gradient of nothing else.
    """
    try:
        for dtype in (torch.float32, torch.float64):
            if same_numbers(network.to(dtype), images.to(dtype), text):
                return "equal"
    except RuntimeError as error:
        return " ".join(str(error).split())[:120]
    finally:
        network.float()
    return "other gradients"


def same_numbers(network: nn.Module, images: Tensor, text: str) -> bool:
    """Tell whether a function gives what it gives on copies, up to rounding."""
    function = Activation(text)
    Place.current = function
    found = passes(network, images)
    Place.current = lambda x: function(x.clone()).clone()
    expected = passes(network, images)
    # Rounding errors of one layer are as large as the largest gradient may make them.
    largest = max(float(one.nan_to_num(0.0, 0.0, 0.0).abs().max()) for one in expected)
    noise = torch.finfo(images.dtype).eps * largest
    return all(
        torch.allclose(one, other, rtol=1e-3, atol=noise, equal_nan=True)
        for one, other in zip(found, expected, strict=True)
    )


def fisher(network: nn.Module, images: Tensor) -> str:
    """Return ``yes``, or why there are no factors, with a function that keeps its output."""
    Place.current = Activation("tanh(x)")
    try:
        kronecker_factors(network, images, None)
    except (BoActError, RuntimeError) as error:
        return " ".join(str(error).split())[:120]
    return "yes"


def scanned(name: str) -> dict[str, Any]:
    """Build a network and try all functions."""
    started = time.perf_counter()
    try:
        network, side = built(name)
    except (BoActError, RuntimeError, ValueError) as error:
        return {"not built": " ".join(str(error).split())[:200]}
    size = sum(weight.numel() for weight in network.parameters())
    images = torch.randn(4, 3, side, side, generator=torch.Generator().manual_seed(0))
    found: dict[str, Any] = {"side": side, "parameters": size}
    for label, text in FUNCTIONS.items():
        found[label] = outcome(network, images, text)
    found["fisher"] = fisher(network, images) if size <= FISHER_UP_TO else "-"
    found["seconds"] = round(time.perf_counter() - started, 1)
    return found


def names(library: str) -> list[str]:
    """Return the networks of a library that are tried."""
    if library == "timm":
        return [f"timm:{name}" for name in TIMM]
    from torchvision import models

    return [f"torchvision:{name}" for name in models.list_models(module=models)]


def table(rows: dict[str, dict[str, Any]]) -> str:
    """Return the results as a table, and a count of them."""
    columns = [*FUNCTIONS, "fisher"]
    lines = [f"| network | side | {' | '.join(columns)} |", "|---|---:|" + "---|" * len(columns)]
    for name, row in rows.items():
        cells = [str(row.get(column, row.get("not built", "")))[:60] for column in columns]
        lines.append(f"| `{name}` | {row.get('side', '')} | {' | '.join(cells)} |")
    for column in columns:
        counts = Counter(row.get(column, "not built") for row in rows.values())
        lines.append(f"{column}: {', '.join(f'{n} {what}' for what, n in counts.most_common())}")
    return "\n".join(lines)


def main() -> None:
    """Scan and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("libraries", nargs="*", default=["torchvision", "timm"])
    parser.add_argument("--out", type=Path, default=Path("runs/networks.jsonl"))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    kept = Kept(arguments.out)
    rows = {}
    for library in arguments.libraries:
        for name in names(library):
            rows[name] = kept.get((name,), lambda name=name: scanned(name))
    print(table(rows))


if __name__ == "__main__":
    main()
