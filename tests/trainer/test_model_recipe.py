"""Sizes against the modules themselves, the published ones of OpenSeek, and what makes no model."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from trainer.model import Decoder, new_model
from trainer.model_recipe import MlaSettings, ModelSettings, RopeSettings
from trainer.router_settings import RouterSettings

OPENSEEK_SMALL: dict[str, Any] = {
    "layers": 6, "width": 1280, "heads": 10, "kv_heads": 10, "head_dim": 192, "ffn_width": 7168, "vocab_size": 151_851,
    "qk_norm": "none", "mla": MlaSettings(kv_rank=512, rope_dim=64, value_dim=128), "experts": 64,
    "experts_per_token": 6, "expert_width": 896, "shared_experts": 2, "dense_layers": 1,
}  # fmt: skip
TINY = ModelSettings(layers=2, width=16, heads=4, kv_heads=2, head_dim=8, ffn_width=24, vocab_size=31, max_sequence=16)


@st.composite
def shapes(draw: st.DrawFn) -> ModelSettings:
    latent = draw(st.booleans())
    attention = (
        {"mla": MlaSettings(kv_rank=8, q_rank=draw(st.sampled_from([None, 12])), rope_dim=4, value_dim=6),
         "qk_norm": "none", "kv_heads": 4}
        if latent
        else {"qk_norm": draw(st.sampled_from(["none", "head", "full"])), "qkv_bias": draw(st.booleans())}
    )  # fmt: skip
    shared = draw(st.integers(0, 2))
    experts = {"experts": draw(st.sampled_from([0, 4])), "expert_width": 8, "shared_experts": shared,
               "shared_width": draw(st.sampled_from([0, 20])) if shared else 0,
               "shared_gate": bool(shared) and draw(st.booleans()), "dense_layers": draw(st.integers(0, 2)),
               "expert_every": draw(st.integers(1, 2))}  # fmt: skip
    more = {
        "layers": draw(st.integers(1, 3)),
        "tie_embeddings": draw(st.booleans()),
        "mtp_layers": draw(st.integers(0, 2)),
    }
    return ModelSettings.model_validate(TINY.model_dump() | attention | experts | more)


@settings(max_examples=30, deadline=None)
@given(shape=shapes())
def test_counts_are_those_of_the_module(shape: ModelSettings):
    with torch.device("meta"):
        model = Decoder(shape)
    counts = {name: parameter.numel() for name, parameter in model.named_parameters()}
    assert shape.parameters() == sum(counts.values())
    assert shape.mtp_parameters() == sum(n for name, n in counts.items() if name.startswith("mtp."))
    idle = 1 - shape.experts_per_token / shape.experts if shape.experts else 0
    routed = sum(n for name, n in counts.items() if ".mlp.experts." in name and not name.startswith("mtp."))
    assert shape.active_parameters() == shape.parameters() - shape.mtp_parameters() - round(idle * routed)


def test_openseek_small_has_1_4_billion_of_which_0_4_are_active():
    baseline = ModelSettings(**OPENSEEK_SMALL)
    assert (baseline.parameters(), baseline.active_parameters()) == (1_394_598_912, 396_813_312)
    v1 = ModelSettings(**OPENSEEK_SMALL, mtp_layers=1)
    assert v1.parameters() - baseline.parameters() == v1.mtp_parameters() == 236_591_872
    assert v1.active_parameters() == baseline.active_parameters()


def counted_by_torch(shape: ModelSettings, length: int) -> float:
    """Operations of the products of one forward pass, three times (backward is twice), causal attention halved."""
    from torch.utils.flop_counter import FlopCounterMode

    counter = FlopCounterMode(display=False)
    with torch.device("meta"), torch.no_grad(), counter:  # shapes alone: torch counts its own products only
        Decoder(shape)(torch.zeros(1, length, dtype=torch.int64))
    counts = counter.get_flop_counts()["Global"]
    attention = sum(n for op, n in counts.items() if "attention" in str(op) or "bmm" in str(op))
    return 3 * (sum(counts.values()) - attention / 2) / length


@pytest.mark.parametrize("tied", [True, False])
def test_flops_are_those_that_torch_counts(tied: bool):
    shape = TINY.model_copy(update={"tie_embeddings": tied})
    found, told = shape.flops_per_token(16), counted_by_torch(shape, 16)
    vectors = sum(p.numel() for p in new_model(shape, 0).parameters() if p.dim() == 1)  # of norms: no product
    assert found - 6 * vectors == pytest.approx(told)


def test_flops_of_prediction_modules_are_added():
    plain = ModelSettings(**OPENSEEK_SMALL)
    more = plain.model_copy(update={"mtp_layers": 2})
    layer = 3 * 10 * (192 + 128) * 4096
    idle = 58 * 3 * 1280 * 896
    module = more.mtp_parameters() / 2 - idle + 151_851 * 1280
    assert more.flops_per_token(4096) - plain.flops_per_token(4096) == pytest.approx(2 * (6 * module + layer))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kv_heads": 3}, "must divide heads"),
        ({"head_dim": 7}, "must be even"),
        ({"mla": {"kv_rank": 8, "rope_dim": 4, "value_dim": 8}, "qk_norm": "none"}, "with mla every head has its own"),
        ({"mla": {"kv_rank": 8, "rope_dim": 4, "value_dim": 8}, "kv_heads": 4}, "set qk_norm: none"),
        ({"mla": {"kv_rank": 8, "rope_dim": 8, "value_dim": 8}, "kv_heads": 4}, "below head_dim"),
        ({"experts": 4, "expert_width": 12}, "multiple of 8"),
        ({"experts": 4, "experts_per_token": 5, "expert_width": 8}, "need 2 or more"),
        ({"experts": 4, "expert_width": 8, "shared_experts": 0, "shared_gate": True}, "need shared_experts"),
        ({"experts": 4, "expert_width": 8, "router": {"groups": 3}}, "must divide experts"),
        ({"rope": {"kind": "yarn", "factor": 4}}, "needs original_positions"),
        ({"rope": {"kind": "llama3", "factor": 4, "original_positions": 8, "low_freq_factor": 5}}, "must exceed"),
        ({"rope": {"kind": "yarn", "factor": 4, "original_positions": 8, "beta_slow": 33}}, "not be below beta_slow"),
        ({"rope": {"kind": "yarn", "factor": 4, "original_positions": 8, "beta_fast": 1e308}}, "less than or equal"),
        ({"rope": {"kind": "linear", "factor": float("inf")}}, "finite number"),
        ({"rope_theta": 1.0}, "greater than 1"),
        ({"norm_eps": float("nan")}, "finite number"),
        *(
            ({size: 10**30}, f"{size}\n.*less than or equal")
            for size in (
                "layers",
                "width",
                "heads",
                "kv_heads",
                "head_dim",
                "ffn_width",
                "vocab_size",
                "max_sequence",
                "mtp_layers",
                "experts",
                "expert_width",
                "shared_experts",
                "shared_width",
            )
        ),
    ],
)
def test_what_makes_no_model_is_refused(change: dict[str, Any], message: str):
    with pytest.raises(ValidationError, match=message):
        ModelSettings.model_validate(TINY.model_dump() | change)


def test_layers_with_experts():
    sparse = TINY.model_copy(
        update={"layers": 8, "experts": 4, "expert_width": 8, "dense_layers": 3, "expert_every": 2}
    )
    assert [layer for layer in range(8) if sparse.has_experts(layer)] == [3, 5, 7]
    assert not any(TINY.has_experts(layer) for layer in range(2))


def test_initial_std_is_that_of_the_weights():
    shape = TINY.model_copy(update={"width": 64, "vocab_size": 997, "initial_std": 0.006, "router": RouterSettings()})
    model = new_model(shape, 0)
    assert float(model.embed_tokens.weight.detach().std()) == pytest.approx(0.006, rel=0.02)
    fed = torch.cat([layer.mlp.down_proj.weight.detach().flatten() for layer in model.layers])  # type: ignore[union-attr]
    assert float(fed.std()) == pytest.approx(0.006 / 2, rel=0.05)  # sqrt(2 * 2 layers)


def test_rope_settings_are_part_of_the_shape():
    stretched = TINY.model_copy(update={"rope": RopeSettings(kind="linear", factor=2.0)})
    assert ModelSettings.model_validate(stretched.model_dump(mode="json")) == stretched
