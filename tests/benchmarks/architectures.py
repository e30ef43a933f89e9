"""Which architectures bo-act takes as they are: of transformers, timm and torchvision.

Each network is built without thinking of bo-act, of a tiny configuration where its library has one
(no downloads, random weights). With each of five functions in turn all activation functions are
replaced (``replace_activations``), and one step of AdamW is made, after which loss and weights
have to be finite. Then the Fisher factors of the network with tanh are computed, whose spectra are
features. *Covered* is the share of its parameters that they are of.

Every finished network is kept as one line of a file, so that a second call goes on where the first
one stopped.
"""

from __future__ import annotations

import argparse
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from kept import Kept
from torch import Tensor, nn

import bo_act
from bo_act.fisher.calls import call, logits_of
from bo_act.fisher.kfac import kronecker_factors

FUNCTIONS = ("relu(x)", "tanh(x)", "swish(x)", "erf(x)", "mul(arctan(x),sigmoid(x))")
VOCABULARY, LENGTH, CLASSES = 99, 12, 10

Inputs = Tensor | dict[str, Tensor]

# Of the configurations: each architecture understands those that it has.
TOKENS: dict[str, Any] = {
    "vocab_size": VOCABULARY, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "intermediate_size": 64, "max_position_embeddings": 64,
    "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "head_dim": 8,
}  # fmt: skip
WITH_OTHER_NAMES: dict[str, dict[str, Any]] = {
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64},
    "gptj": {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64, "rotary_dim": 8},
    "distilbert": {"dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 64},
    "electra": {"embedding_size": 32},
    "albert": {"embedding_size": 16},
    "opt": {"ffn_dim": 64, "word_embed_proj_dim": 32},
    "t5": {"d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_heads": 4,
           "decoder_start_token_id": 0},
    "vit": {"image_size": 32, "patch_size": 8},
    "convnext": {"hidden_sizes": [8, 16, 24, 32], "depths": [1, 1, 1, 1]},
    "swin": {"image_size": 32, "patch_size": 2, "embed_dim": 16, "depths": [1, 1],
             "num_heads": [2, 4], "window_size": 4},
}  # fmt: skip
TRANSFORMERS = {
    "gpt2": "CausalLM", "gptj": "CausalLM", "gpt_neox": "CausalLM", "opt": "CausalLM",
    "llama": "CausalLM", "mistral": "CausalLM", "qwen2": "CausalLM", "gemma": "CausalLM",
    "bert": "MaskedLM", "distilbert": "MaskedLM", "electra": "MaskedLM",
    "albert": "SequenceClassification", "t5": "Seq2SeqLM", "vit": "ImageClassification",
    "convnext": "ImageClassification",
}  # fmt: skip
TIMM = {
    "resnet10t": 64, "regnetx_002": 64, "efficientnet_lite0": 64, "mobilenetv3_small_050": 64,
    "mobilenetv4_conv_small_035": 64, "ghostnet_050": 64, "lcnet_035": 64, "convnext_atto": 64,
    "vit_tiny_patch16_224": 224, "deit_tiny_patch16_224": 224, "mixer_s32_224": 224,
    "gmlp_ti16_224": 224, "mobilevitv2_050": 64, "edgenext_xx_small": 64, "starnet_s1": 64,
}  # fmt: skip
TORCHVISION = (
    "alexnet", "squeezenet1_1", "shufflenet_v2_x0_5", "mnasnet0_5", "mobilenet_v2",
    "mobilenet_v3_small", "efficientnet_b0", "resnet18", "regnet_x_400mf", "densenet121",
)  # fmt: skip


def of_transformers(name: str) -> tuple[nn.Module, Inputs]:
    """Build a network of a tiny configuration."""
    import transformers

    task, images = TRANSFORMERS[name], "Image" in TRANSFORMERS[name]
    options = {**({} if images else TOKENS), **WITH_OTHER_NAMES.get(name, {})}
    if name == "vit":
        options |= {key: TOKENS[key] for key in TOKENS if key.startswith(("hid", "num_h", "inter"))}
        options |= {"num_attention_heads": 4}
    if images or task == "SequenceClassification":
        options["num_labels"] = CLASSES
    options["use_cache"] = False
    config = transformers.AutoConfig.for_model(name, **options)
    network = getattr(transformers, f"AutoModelFor{task}").from_config(config)
    if images:
        return network, {"pixel_values": torch.randn(4, 3, 32, 32)}
    tokens = torch.randint(3, VOCABULARY, (4, LENGTH))
    inputs = {"input_ids": tokens}
    return network, inputs | ({"decoder_input_ids": tokens.clone()} if "Seq2Seq" in task else {})


def of_timm(name: str) -> tuple[nn.Module, Inputs]:
    """Build the network for ten classes."""
    import timm

    return timm.create_model(name, num_classes=CLASSES), torch.randn(2, 3, TIMM[name], TIMM[name])


def of_torchvision(name: str) -> tuple[nn.Module, Inputs]:
    """Build the network for ten classes."""
    from torchvision import models

    return models.get_model(name, weights=None, num_classes=CLASSES), torch.randn(2, 3, 64, 64)


BUILD: dict[str, Callable[[str], tuple[nn.Module, Inputs]]] = {
    "transformers": of_transformers,
    "timm": of_timm,
    "torchvision": of_torchvision,
}


def built(library: str, name: str) -> tuple[nn.Module, Inputs]:
    """Build a network; it has the same weights each time."""
    torch.manual_seed(0)
    return BUILD[library](name)


def step(network: nn.Module, inputs: Inputs) -> str:
    """Make one step of training; return ``yes``, or what is wrong."""
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-3)
    logits = logits_of(call(network.train(), inputs)).flatten(0, -2)
    targets = torch.randint(logits.shape[1], (len(logits),))
    loss = nn.functional.cross_entropy(logits, targets)
    loss.backward()
    optimizer.step()
    finite = bool(loss.isfinite()) and all(bool(w.isfinite().all()) for w in network.parameters())
    return "yes" if finite else "not finite"


def covered(network: nn.Module, uncovered: tuple[str, ...]) -> float:
    """Return the share of the parameters that lie in none of these layers."""
    sizes = {name: weight.numel() for name, weight in network.named_parameters()}
    left = sum(
        size
        for name, size in sizes.items()
        if any(name == one or name.startswith(f"{one}.") for one in uncovered)
    )
    return 1 - left / sum(sizes.values())


def scanned(library: str, name: str) -> dict[str, Any]:
    """Try one network; what fails stands in place of its result."""
    started = time.perf_counter()
    row: dict[str, Any] = {}
    try:
        for text in FUNCTIONS:
            network, inputs = built(library, name)
            done = bo_act.replace_activations(network, text, inputs=inputs)
            row["replaced"] = len(done.replaced)
            row[text] = step(network, inputs)
        row["parameters"] = sum(weight.numel() for weight in network.parameters())
        network, inputs = built(library, name)
        bo_act.replace_activations(network, "tanh(x)", inputs=inputs)
        # Their eigenvalues, which take the time, depend on no architecture.
        found = kronecker_factors(network, inputs, None)
        row["covered"] = round(covered(network, found.uncovered), 6)
        row["uncovered"] = list(found.uncovered)
    except Exception as error:
        row["failed"] = " ".join(f"{type(error).__name__}: {error}".split())[:200]
    row["seconds"] = round(time.perf_counter() - started, 1)
    return row


def shown(covered: float | None) -> str:
    """Return a share in percent; 100% is only what lacks nothing."""
    if covered is None:
        return "-"
    return "100%" if covered == 1 else f"{min(covered, 0.9999):.2%}"


def left(uncovered: list[str]) -> str:
    """Return names of layers without their places, each once: ``norm``, ``cls_token``."""
    parts = ([part for part in name.split(".") if not part.isdigit()] for name in uncovered)
    return ", ".join(dict.fromkeys(f"`{one[-1]}`" for one in parts))


def table(rows: dict[tuple[str, str], dict[str, Any]]) -> str:
    """Return the results as a table of a page."""
    lines = [
        "| network | parameters | replaced | trained a step | spectra cover | except |",
        "|---|---:|---:|---:|---:|---|",
    ]
    for (library, name), row in rows.items():
        trained = sum(row.get(text) == "yes" for text in FUNCTIONS)
        missing = left(row.get("uncovered", []))
        lines.append(
            f"| {library} `{name}` | {row.get('parameters', 0):,} | {row.get('replaced', 0)} | "
            f"{trained} of {len(FUNCTIONS)} | {shown(row.get('covered'))} | {missing} |"
        )
        if "failed" in row:
            lines.append(f"{library}:{name}: {row['failed']}")
    return "\n".join(lines)


def main() -> None:
    """Scan and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("libraries", nargs="*", default=[*BUILD])
    parser.add_argument("--out", type=Path, default=Path("runs/architectures.jsonl"))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    kept = Kept(arguments.out)
    names = {"transformers": TRANSFORMERS, "timm": TIMM, "torchvision": TORCHVISION}
    rows = {}
    for library in arguments.libraries:
        for name in names[library]:
            search = lambda library=library, name=name: scanned(library, name)  # noqa: E731
            rows[library, name] = kept.get((library, name), search)
    print(table(rows))


if __name__ == "__main__":
    main()
