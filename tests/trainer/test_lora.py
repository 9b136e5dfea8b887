"""Low-rank updates: against the closed form, against peft, merged against unmerged, and what they cover."""

import importlib.util
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from pipelines.errors import DataError, RecipeError
from trainer.lora import add_lora, coverage, merge, merged_tensors, updates
from trainer.lora_adapter import CONFIG, WEIGHTS, load_adapter, save_adapter
from trainer.lora_settings import LoraSettings
from trainer.model import Decoder, new_model
from trainer.model_recipe import MlaSettings, ModelSettings

DENSE = ModelSettings(layers=2, width=16, heads=2, kv_heads=1, head_dim=8, ffn_width=24, vocab_size=32, max_sequence=16)
SPARSE = DENSE.model_copy(update={"experts": 4, "expert_width": 8, "dense_layers": 1})
LATENT = SPARSE.model_copy(update={
    "qk_norm": "none", "kv_heads": 2, "head_dim": 12, "mla": MlaSettings(kv_rank=8, rope_dim=4, value_dim=8)
})  # fmt: skip
SMALL = LoraSettings(rank=2, alpha=6.0)
TOKENS = torch.arange(24).view(2, 12) % 32


def adapted(settings: ModelSettings, lora: LoraSettings = SMALL) -> Decoder:
    """A model with updates that are not zero."""
    model = new_model(settings, seed=1)
    add_lora(model, lora, seed=2)
    generator = torch.Generator().manual_seed(3)
    for update in updates(model).values():
        update.lora_B.data.normal_(0, 0.1, generator=generator)
    return model.eval()


def logits(model: Decoder) -> torch.Tensor:
    with torch.inference_mode():
        return model.eval()(TOKENS)


@pytest.mark.parametrize("settings", [DENSE, SPARSE], ids=["dense", "experts"])
def test_training_begins_at_the_model_as_it_was(settings: ModelSettings):
    before = logits(new_model(settings, seed=1))
    model = new_model(settings, seed=1)
    add_lora(model, SMALL, seed=2)
    assert torch.equal(logits(model), before)


@pytest.mark.parametrize("settings", [DENSE, SPARSE], ids=["dense", "experts"])
def test_weights_are_what_the_closed_form_says(settings: ModelSettings):
    """Expert by expert, `W + alpha / rank * B A`, put into a model that knows nothing of updates."""
    model, plain = adapted(settings), new_model(settings, seed=1)
    for name, update in updates(model).items():
        weight = plain.get_parameter(name).data
        if weight.dim() == 2:
            weight += 3.0 * update.lora_B.data @ update.lora_A.data
        else:
            for expert in range(len(weight)):
                weight[expert] += 3.0 * update.lora_B.data[expert] @ update.lora_A.data[expert]
    assert torch.allclose(logits(model), logits(plain), atol=1e-6)


@pytest.mark.parametrize("settings", [DENSE, SPARSE], ids=["dense", "experts"])
def test_merged_is_unmerged_to_the_bit(settings: ModelSettings):
    model = adapted(settings)
    unmerged, tensors = logits(model), merged_tensors(model)
    merge(model)
    assert torch.equal(logits(model), unmerged)
    assert not updates(model)
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert model.state_dict().keys() == tensors.keys() == Decoder(settings).state_dict().keys()
    assert all(torch.equal(tensor, tensors[name]) for name, tensor in model.state_dict().items())


def test_only_updates_learn_and_every_one_does():
    model = new_model(SPARSE, seed=1)
    add_lora(model, SMALL, seed=2)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=1.0)
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    for _ in range(2):  # lora_A has a gradient once lora_B is not zero
        optimizer.zero_grad()
        model.train().loss(TOKENS[:, :-1], TOKENS[:, 1:]).total.backward()
        optimizer.step()
    for name, parameter in model.named_parameters():
        changed = not torch.equal(parameter, before[name])
        assert changed == name.endswith(("lora_A", "lora_B")), name


def test_recomputing_activations_changes_no_gradient():
    gradients = []
    for recompute in (False, True):
        model = adapted(SPARSE).train()
        model.recompute = recompute
        model.loss(TOKENS[:, :-1], TOKENS[:, 1:]).total.backward()
        gradients.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys()
    assert len(gradients[0]) == 2 * len(updates(adapted(SPARSE)))
    assert all(torch.equal(gradients[0][name], gradients[1][name]) for name in gradients[0])


def test_what_is_covered_is_counted():
    """By hand: attention 2 layers of q 16x16, k and v 8x16, o 16x16; experts 4 of gate, up, down 16x8."""
    found = add_lora(new_model(SPARSE, seed=0), SMALL, seed=0)
    attention, dense, routed, shared = 2 * (16 * 16 * 2 + 2 * 8 * 16), 3 * 16 * 24, 4 * 3 * 16 * 8, 3 * 16 * 8
    assert found.covered == attention + dense + routed + shared
    assert found.total == SPARSE.parameters()
    assert found.by_kind == {
        "attention": 1.0, "dense feed-forward": 1.0, "routed experts": 1.0, "shared experts": 1.0, "routers": 0.0,
        "embeddings": 0.0, "norms and biases": 0.0,
    }  # fmt: skip
    per_attention = 2 * (2 * (16 + 16) + 2 * (8 + 16)) * 2
    per_mlp = 2 * (2 * (24 + 16) + (16 + 24)) + 4 * 2 * ((16 + 16) + (16 + 8)) + 2 * (2 * (8 + 16) + (16 + 8))
    assert found.trained == per_attention + per_mlp


def test_attention_alone_is_said_to_leave_experts_out():
    found = add_lora(new_model(SPARSE, seed=0), LoraSettings(targets=("*.self_attn.*",), rank=2), seed=0)
    assert found.by_kind["attention"] == 1.0
    assert found.by_kind["routed experts"] == 0.0
    assert found.summary()["covered_share"] == round(found.covered / SPARSE.parameters(), 6)


@pytest.mark.parametrize(
    ("settings", "targets"),
    [(DENSE, ("layers.*.mlp.experts.*",)), (SPARSE, ("*.self_attn.*", "*.gate_proj")), (DENSE, ("embed_tokens*",))],
)
def test_a_pattern_that_covers_nothing_is_refused(settings: ModelSettings, targets: tuple[str, ...]):
    with pytest.raises(RecipeError, match=r"covers no matrix of this model; there are: layers\.\*"):
        add_lora(new_model(settings, seed=0), LoraSettings(targets=targets), seed=0)


def test_a_rank_that_adds_nothing_is_refused():
    with pytest.raises(RecipeError, match=r"lora.rank is 9, layers.0.self_attn.k_proj.weight is 8 by 16"):
        add_lora(new_model(DENSE, seed=0), LoraSettings(rank=9), seed=0)


def test_draws_do_not_depend_on_other_targets():
    alone, all_of_them = new_model(DENSE, seed=0), new_model(DENSE, seed=0)
    add_lora(alone, LoraSettings(targets=("*.o_proj.weight",), rank=2), seed=5)
    add_lora(all_of_them, LoraSettings(rank=2), seed=5)
    name = "layers.1.self_attn.o_proj.weight"
    assert torch.equal(updates(alone)[name].lora_A, updates(all_of_them)[name].lora_A)


WITH_ROUTER = LoraSettings(targets=("*.self_attn.*", "*.mlp.*_proj*", "*.mlp.gate.weight"), rank=2, alpha=6.0)


@pytest.mark.parametrize(
    ("settings", "lora"),
    [
        (DENSE, SMALL), (SPARSE, SMALL), (SPARSE, WITH_ROUTER),
        (SPARSE, LoraSettings(targets=("*.down_proj",), rank=2)),
        (SPARSE, LoraSettings(targets=("*.gate_up_proj",), rank=2)),
    ],
)  # fmt: skip
def test_an_adapter_comes_back(settings: ModelSettings, lora: LoraSettings, tmp_path: Path):
    model = adapted(settings, lora)
    save_adapter(tmp_path, model)
    again = load_adapter(tmp_path, new_model(settings, seed=1))
    assert updates(again).keys() == updates(model).keys()
    assert torch.equal(logits(again), logits(model))
    assert coverage(again) == coverage(model)


def test_an_adapter_of_another_model_is_refused(tmp_path: Path):
    save_adapter(tmp_path, adapted(SPARSE))
    with pytest.raises(DataError, match="has no place in this model"):
        load_adapter(tmp_path, new_model(DENSE, seed=1))
    with pytest.raises(DataError, match="has no place in this model"):
        load_adapter(tmp_path, new_model(SPARSE.model_copy(update={"expert_width": 16}), seed=1))
    with pytest.raises(DataError, match="is no adapter"):
        load_adapter(tmp_path / "nowhere", new_model(SPARSE, seed=1))
    config = json.loads((tmp_path / CONFIG).read_text())
    (tmp_path / CONFIG).write_text(json.dumps({**config, "use_dora": True}))
    with pytest.raises(DataError, match="use_dora is True; expected False"):
        load_adapter(tmp_path, new_model(SPARSE, seed=1))


@pytest.mark.parametrize("other", [None, torch.zeros(()), torch.zeros(0), torch.zeros(16, 2, 1)])
def test_half_an_update_is_refused(other: torch.Tensor | None, tmp_path: Path):
    save_adapter(tmp_path, adapted(DENSE))
    tensors = load_file(tmp_path / WEIGHTS)
    del tensors[name := "base_model.model.model.layers.0.self_attn.q_proj.lora_B.weight"]
    save_file(tensors | ({} if other is None else {name: other}), tmp_path / WEIGHTS)
    with pytest.raises(DataError, match="q_proj of None has no place"):
        load_adapter(tmp_path, new_model(DENSE, seed=1))


def test_a_configuration_that_is_none_is_refused(tmp_path: Path):
    save_adapter(tmp_path, adapted(DENSE))
    (tmp_path / CONFIG).write_text("[]")
    with pytest.raises(DataError, match="holds no mapping"):
        load_adapter(tmp_path, new_model(DENSE, seed=1))


@pytest.mark.skipif(importlib.util.find_spec("peft") is None, reason="peft is not installed")
@pytest.mark.parametrize("settings", [DENSE, SPARSE, LATENT], ids=["dense", "experts", "latent"])
def test_peft_computes_the_same(settings: ModelSettings, tmp_path: Path):
    """peft puts our adapter onto the exported model; one that peft wrote comes back here."""
    from peft import PeftModel  # type: ignore[import-not-found]
    from transformers import AutoModelForCausalLM

    from trainer.checkpoint import save_model
    from trainer.export import export_hf

    lora = SMALL if settings is DENSE else WITH_ROUTER
    save_model(tmp_path / "base", new_model(settings, seed=1))
    export_hf(tmp_path / "base", tmp_path / "hf")
    model = adapted(settings, lora)
    save_adapter(tmp_path / "adapter", model, base=str(tmp_path / "hf"))
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "hf", local_files_only=True)
    tuned = PeftModel.from_pretrained(theirs, tmp_path / "adapter").eval()
    with torch.inference_mode():
        found = tuned(input_ids=TOKENS).logits
    assert torch.allclose(found, logits(model), atol=1e-5)
    assert not torch.allclose(found, logits(new_model(settings, seed=1)), atol=1e-3)
    tuned.save_pretrained(tmp_path / "theirs")
    again = load_adapter(tmp_path / "theirs", new_model(settings, seed=1))
    assert torch.equal(logits(again), logits(model))


@pytest.mark.parametrize("targets", [LoraSettings().targets, ("layers.*.mlp.gate.weight",)], ids=["default", "routers"])
def test_an_adapter_on_the_base_is_the_merged_model_after_training(targets: tuple[str, ...], tmp_path: Path):
    """What an adapter cannot hold, the balancing bias, must not have moved."""
    model = new_model(SPARSE, seed=1)
    add_lora(model, LoraSettings(rank=2, targets=targets), seed=2)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=1.0)
    for _ in range(4):
        optimizer.zero_grad()
        model.train().loss(TOKENS[:, :-1], TOKENS[:, 1:]).total.backward()
        optimizer.step()
        assert all(router.rebalance().any() for router in model.routers().values())
    save_adapter(tmp_path, model)
    alone, merged = load_adapter(tmp_path, new_model(SPARSE, seed=1)), merge(model)
    assert torch.equal(logits(alone), logits(merged))
    merged.train().loss(TOKENS[:, :-1], TOKENS[:, 1:])
    merged.routers()[1].rebalance()
    bias_E = merged.routers()[1].e_score_correction_bias
    assert bias_E is not None
    assert bias_E.any()  # a whole model is balanced again


def test_every_kind_is_named():
    """A gate of the shared expert and a module for further tokens are no dense layer and no embedding."""
    shape = SPARSE.model_copy(update={"shared_gate": True, "mtp_layers": 1, "tie_embeddings": False})
    lora = LoraSettings(rank=1, targets=("*.eh_proj.weight", "*.shared_expert_gate.weight"))
    found = add_lora(new_model(shape, seed=0), lora, seed=0).by_kind
    assert 0 < found["further tokens"] < 1
    assert 0 < found["shared experts"] < 1
    assert found["dense feed-forward"] == found["embeddings"] == 0.0
    whole = add_lora(new_model(shape, seed=0), SMALL, seed=0).by_kind
    assert whole["attention"] == whole["routed experts"] == whole["dense feed-forward"] == 1.0
    assert whole["further tokens"] == 0.0
