"""Tiny networks of Hugging Face's transformers: what is covered, and its factors by loops."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import fisher_loops
import numpy as np
import pytest
import torch
from fisher_loops import kronecker_factors
from torch import nn

from bo_act.errors import FeatureError
from bo_act.features.compute import compute_features
from bo_act.fisher.spectra import fim_spectra
from bo_act.spaces.space import Space
from bo_act.specs import FeaturesSpec

hf = pytest.importorskip("transformers")

V, T, B = 31, 6, 3
SIZES = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2,
         "intermediate_size": 24}  # fmt: skip
TOKENS = torch.randint(V, (B, T), generator=torch.Generator().manual_seed(0))
MASK = torch.ones(B, T, dtype=torch.long)
MASK[0, 4:] = 0


def gpt2() -> nn.Module:
    config = hf.GPT2Config(
        vocab_size=V, n_positions=T, n_embd=16, n_layer=2, n_head=2, bos_token_id=0, eos_token_id=0
    )
    return hf.GPT2LMHeadModel(config)


def bert() -> nn.Module:
    config = hf.BertConfig(vocab_size=V, max_position_embeddings=T, num_labels=3, **SIZES)
    return hf.BertForSequenceClassification(config)


def llama() -> nn.Module:
    config = hf.LlamaConfig(vocab_size=V, max_position_embeddings=T, num_key_value_heads=1, **SIZES)
    return hf.LlamaForCausalLM(config)


def vit() -> nn.Module:
    config = hf.ViTConfig(image_size=8, patch_size=4, num_labels=3, **SIZES)
    return hf.ViTForImageClassification(config)


def convnext() -> nn.Module:
    config = hf.ConvNextConfig(
        hidden_sizes=[4, 6, 8, 10], depths=[1, 1, 1, 1], num_labels=3, image_size=32
    )
    return hf.ConvNextForImageClassification(config)


def seeded(build: Callable[[], nn.Module]) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return build().double().eval()


def pixels(side: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(B, 3, side, side, generator=generator, dtype=torch.float64)


READING = {"input_ids": TOKENS, "attention_mask": MASK}
NETWORKS: dict[Callable[[], nn.Module], dict[str, Any]] = {
    gpt2: READING,
    bert: READING,
    llama: READING,
    vit: {"pixel_values": pixels(8)},
    convnext: {"pixel_values": pixels(32)},
}
# Parameters of no layer.
UNCOVERED = {
    vit: ("vit.embeddings.cls_token", "vit.embeddings.position_embeddings"),
    convnext: tuple(
        f"convnext.encoder.stages.{stage}.layers.0.layer_scale_parameter" for stage in range(4)
    ),
}


@pytest.mark.parametrize("build", NETWORKS, ids=lambda build: build.__name__)
def test_what_is_covered(build):
    network = seeded(build)
    result = fim_spectra(network, NETWORKS[build], quantiles=8)
    assert result.uncovered == UNCOVERED.get(build, ())
    assert np.isfinite(result.quantiles).all()
    weights = {name: one.numel() for name, one in network.named_parameters()}
    outside = sum(
        size for name, size in weights.items()
        if any(name == left or name.startswith(f"{left}.") for left in result.uncovered)
    )  # fmt: skip
    tied = V * 16 if build is gpt2 else 0  # the head's, which is the table's too
    assert result.weights.sum() == sum(weights.values()) - outside + tied
    assert outside <= 0.03 * sum(weights.values())


@pytest.mark.parametrize("fisher", ["exact", "empirical"])
@pytest.mark.parametrize(
    ("build", "names"),
    [
        (gpt2, ("transformer.h.0.attn.c_attn", "transformer.h.1.mlp.c_proj")),
        (bert, ("bert.encoder.layer.0.attention.self.query", "classifier")),
    ],
)
def test_linear_layers_by_loops(build, names, fisher):
    network, inputs = seeded(build), NETWORKS[build]
    targets = TOKENS.masked_fill(MASK == 0, -100) if build is gpt2 else torch.tensor([0, 2, 1])
    found = kronecker_factors(network, inputs, targets, fisher=fisher).layers
    for name in names:
        (ours,) = (layer for layer in found if layer.name == name)
        layer = network.get_submodule(name)
        a, g = fisher_loops.factors(
            network, layer, inputs, targets, loss="cross_entropy", fisher=fisher
        )
        torch.testing.assert_close(ours.a[0], a, rtol=1e-9, atol=1e-12)
        torch.testing.assert_close(ours.g[0], g, rtol=1e-9, atol=1e-13)


@pytest.mark.parametrize(
    ("build", "name"),
    [
        (gpt2, "transformer.wte"),
        (gpt2, "transformer.wpe"),
        (bert, "bert.embeddings.word_embeddings"),
        (bert, "bert.embeddings.position_embeddings"),
        (bert, "bert.embeddings.token_type_embeddings"),
        (llama, "model.embed_tokens"),
    ],
)
def test_tables_by_loops(build, name):
    network, inputs = seeded(build), NETWORKS[build]
    table = network.get_submodule(name)
    found = kronecker_factors(network, inputs, fisher="exact").layers
    (ours,) = (layer for layer in found if layer.name == name)
    positions, batch = fisher_loops.looped(
        network, table, inputs, loss="cross_entropy", fisher="exact"
    )
    used = [(int(token), ds) for token, ds in positions if int(token) != table.padding_idx]
    counts = torch.zeros(len(table.weight)).double()
    for token, _ in used:
        counts[token] += 1 / len(used)
    g = sum(ds.T @ ds for _, ds in used) / batch
    torch.testing.assert_close(ours.a[0], counts)
    torch.testing.assert_close(ours.g[0], g, rtol=1e-9, atol=1e-13)


def test_features_of_a_language_model(tiny: Space):
    def network(activation: Callable[[], nn.Module]) -> nn.Module:
        model = gpt2()
        for block in model.transformer.h:
            block.mlp.act = activation()
        return model

    spec = FeaturesSpec(quantiles=8, subset=3)
    table = compute_features(tiny, network=network, inputs=READING, spec=spec)
    assert table.provenance["uncovered"] == ()
    assert table.blocks["fim"].present.sum() == 3


def test_a_network_without_a_head_is_refused():
    with pytest.raises(FeatureError, match=r"of last_hidden_state.*wrap the network"):
        fim_spectra(seeded(gpt2).transformer, {**READING, "use_cache": False}, quantiles=8)
