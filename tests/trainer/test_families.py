"""Every family against the class of transformers that it names: logits both ways, names on disk, refusals."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
from safetensors.torch import load_file, save_file  # noqa: E402

from pipelines.errors import DataError, RecipeError  # noqa: E402
from trainer.checkpoint import load_model, save_model  # noqa: E402
from trainer.export import check_export, export_hf  # noqa: E402
from trainer.families.family import Family, essence  # noqa: E402
from trainer.families.registry import BY_TYPE, FAMILIES, family_of, shape_of  # noqa: E402
from trainer.hf_import import import_hf  # noqa: E402
from trainer.model import new_model  # noqa: E402
from trainer.router_settings import RouterSettings  # noqa: E402

TOKENS = np.random.default_rng(0).integers(0, 96, 40)
SHAPE = {"vocab_size": 96, "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4,
         "num_key_value_heads": 2, "intermediate_size": 48, "max_position_embeddings": 64}  # fmt: skip
ALL_HEADS = {"num_key_value_heads": 4}
LATENT = {**ALL_HEADS, "kv_lora_rank": 16, "qk_rope_head_dim": 8, "qk_nope_head_dim": 12, "v_head_dim": 10}
ROUTED = {"n_routed_experts": 8, "n_shared_experts": 2, "num_experts_per_tok": 3, "moe_intermediate_size": 16,
          "first_k_dense_replace": 1, "routed_scaling_factor": 1.7}  # fmt: skip
YARN = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": 16}
LLAMA3 = {"rope_type": "llama3", "rope_theta": 5e5, "factor": 8.0, "original_max_position_embeddings": 16,
          "low_freq_factor": 1.0, "high_freq_factor": 4.0}  # fmt: skip
LINEAR = {"rope_type": "linear", "rope_theta": 1e4, "factor": 2.0}
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {}),
    "llama tied": ("llama", {"tie_word_embeddings": True, "head_dim": 16, "rms_norm_eps": 1e-5}),
    "llama3": ("llama", {"rope_parameters": LLAMA3}),
    "llama linear": ("llama", {"rope_parameters": LINEAR}),
    "qwen2": ("qwen2", {}),
    "qwen2 yarn tied": ("qwen2", {"rope_parameters": YARN, "tie_word_embeddings": True}),
    "qwen3": ("qwen3", {"head_dim": 16}),
    "qwen3 yarn": ("qwen3", {"head_dim": 16, "rope_parameters": {**YARN, "truncate": False, "attention_factor": 0.9,
                                                                 "beta_slow": 0.05}}),
    "mixtral": ("mixtral", {"num_local_experts": 4, "num_experts_per_tok": 2}),
    "olmoe": ("olmoe", {"num_experts": 8, "num_experts_per_tok": 3}),
    "olmoe normalized": ("olmoe", {"num_experts": 8, "num_experts_per_tok": 3, "norm_topk_prob": True}),
    "qwen2_moe": ("qwen2_moe", {"num_experts": 8, "num_experts_per_tok": 3, "moe_intermediate_size": 16,
                                "shared_expert_intermediate_size": 24, "decoder_sparse_step": 2}),
    "qwen2_moe every": ("qwen2_moe", {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16,
                                      "shared_expert_intermediate_size": 24, "qkv_bias": False,
                                      "norm_topk_prob": True}),
    "qwen3_moe": ("qwen3_moe", {"num_experts": 8, "num_experts_per_tok": 3, "moe_intermediate_size": 16,
                                "head_dim": 16, "mlp_only_layers": [0], "norm_topk_prob": True}),
    "dots1": ("dots1", {**ROUTED, "head_dim": 16, "norm_topk_prob": True, "sliding_window": None}),
    "deepseek_v2": ("deepseek_v2", {**LATENT, **ROUTED, "q_lora_rank": None}),
    "deepseek_v2 groups": ("deepseek_v2", {**LATENT, **ROUTED, "q_lora_rank": 24, "n_group": 4, "topk_group": 2,
                                           "topk_method": "group_limited_greedy",
                                           "rope_parameters": {**YARN, "mscale": 0.8, "mscale_all_dim": 0.6}}),
    "deepseek_v3": ("deepseek_v3", {**LATENT, **ROUTED, "q_lora_rank": None, "n_group": 1, "topk_group": 1}),
    "deepseek_v3 groups": ("deepseek_v3", {**LATENT, **ROUTED, "q_lora_rank": 24, "n_group": 4, "topk_group": 2,
                                           "rope_parameters": {**YARN, "mscale": 1.0, "mscale_all_dim": 1.0}}),
    "deepseek_v3 halves": ("deepseek_v3", {**LATENT, **ROUTED, "q_lora_rank": 24, "n_group": 2, "topk_group": 1,
                                           "rope_interleave": False, "norm_topk_prob": False,
                                           "tie_word_embeddings": True}),
    "llama one key head": ("llama", {"num_key_value_heads": 1, "head_dim": 6}),
    "qwen3 yarn wide": ("qwen3", {"num_key_value_heads": 1, "head_dim": 10, "rope_parameters": {
        **YARN, "factor": 40.0, "mscale": 0.7, "mscale_all_dim": 1.3, "beta_fast": 4.0, "beta_slow": 0.5}}),
    "olmoe all experts tied": ("olmoe", {"num_experts": 4, "num_experts_per_tok": 4, "tie_word_embeddings": True}),
    "mixtral one expert": ("mixtral", {"num_local_experts": 5, "num_experts_per_tok": 1, "head_dim": 10}),
    "dots1 groups": ("dots1", {**ROUTED, "head_dim": 10, "n_group": 2, "topk_group": 1, "first_k_dense_replace": 0,
                               "norm_topk_prob": False, "sliding_window": None}),
    "deepseek_v2 wide values": ("deepseek_v2", {**LATENT, **ROUTED, "q_lora_rank": None, "v_head_dim": 26,
                                                "rope_parameters": {**YARN, "mscale": 0.7}}),
    "deepseek_v2 dense": ("deepseek_v2", {**LATENT, **ROUTED, "q_lora_rank": 7, "first_k_dense_replace": 3}),
    "deepseek_v3 wide values": ("deepseek_v3", {**LATENT, **ROUTED, "q_lora_rank": 5, "v_head_dim": 26, "n_group": 4,
                                                "topk_group": 3, "rope_parameters": {**YARN, "mscale_all_dim": 0.7}}),
}  # fmt: skip


def theirs_of(case: str) -> Any:
    """A model of transformers whose every tensor is random, norms and balancing biases included."""
    model_type, changes = CASES[case]
    config = transformers.AutoConfig.for_model(model_type, **{**SHAPE, **changes})
    model = transformers.AutoModelForCausalLM.from_config(config).float().eval()
    draw = torch.Generator().manual_seed(1)
    persistent = model.state_dict()
    with torch.no_grad():
        for name, tensor in sorted(persistent.items()):
            middle = 1.0 if "norm" in name else 0.0
            tensor.copy_(middle + 0.2 * torch.randn(tensor.shape, generator=draw))
    model.tie_weights()
    return model


def logits_of(model: Any) -> Any:
    tokens = torch.from_numpy(TOKENS).unsqueeze(0)
    with torch.inference_mode():
        found = model(tokens)
    return found if isinstance(found, torch.Tensor) else found.logits


@pytest.mark.parametrize("case", CASES)
def test_both_ways_give_the_same_logits(tmp_path: Path, case: str):
    theirs = theirs_of(case)
    theirs.save_pretrained(tmp_path / "hf")
    import_hf(tmp_path / "hf", tmp_path / "ours")
    expected = logits_of(theirs)
    assert expected.std() > 0.1
    assert (logits_of(load_model(tmp_path / "ours" / "final")) - expected).abs().max() <= 1e-5
    metrics = export_hf(tmp_path / "ours" / "final", tmp_path / "back")
    assert metrics["architecture"] == type(theirs).__name__
    assert check_export(tmp_path / "ours" / "final", tmp_path / "back", TOKENS) <= 1e-5
    before, after = (load_file(tmp_path / folder / "model.safetensors") for folder in ("hf", "back"))
    extra = {"lm_head.weight"} if CASES[case][1].get("tie_word_embeddings") else set()
    assert after.keys() - extra == before.keys() - extra
    if "halves" not in case:
        assert all(torch.equal(before[name], after[name]) for name in before)


def test_every_family_has_a_case():
    assert {model_type for model_type, _ in CASES.values()} == BY_TYPE.keys()
    assert len(FAMILIES) == len(BY_TYPE)


PUBLISHED: dict[str, tuple[int, dict[str, Any]]] = {
    "Llama-3.1-8B": (8_030_261_248, {
        "model_type": "llama", "vocab_size": 128256, "hidden_size": 4096, "num_hidden_layers": 32,
        "num_attention_heads": 32, "num_key_value_heads": 8, "intermediate_size": 14336, "rope_theta": 500000.0,
        "max_position_embeddings": 131072, "rms_norm_eps": 1e-5, "tie_word_embeddings": False, "hidden_act": "silu",
        "rope_scaling": {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "rope_type": "llama3",
                         "original_max_position_embeddings": 8192}}),
    "Qwen2.5-0.5B": (494_032_768, {
        "model_type": "qwen2", "vocab_size": 151936, "hidden_size": 896, "num_hidden_layers": 24,
        "num_attention_heads": 14, "num_key_value_heads": 2, "intermediate_size": 4864, "rope_theta": 1000000.0,
        "max_position_embeddings": 32768, "rms_norm_eps": 1e-6, "tie_word_embeddings": True,
        "use_sliding_window": False, "sliding_window": 32768, "max_window_layers": 24}),
    "Mixtral-8x7B": (46_702_792_704, {
        "model_type": "mixtral", "vocab_size": 32000, "hidden_size": 4096, "num_hidden_layers": 32,
        "num_attention_heads": 32, "num_key_value_heads": 8, "intermediate_size": 14336, "rope_theta": 1000000.0,
        "max_position_embeddings": 32768, "rms_norm_eps": 1e-5, "num_local_experts": 8, "num_experts_per_tok": 2,
        "sliding_window": None, "tie_word_embeddings": False}),
    "OLMoE-1B-7B": (6_919_161_856, {
        "model_type": "olmoe", "vocab_size": 50304, "hidden_size": 2048, "num_hidden_layers": 16,
        "num_attention_heads": 16, "num_key_value_heads": 16, "intermediate_size": 1024, "rope_theta": 10000.0,
        "max_position_embeddings": 4096, "rms_norm_eps": 1e-5, "num_experts": 64, "num_experts_per_tok": 8,
        "norm_topk_prob": False, "clip_qkv": None, "tie_word_embeddings": False}),
    "Qwen1.5-MoE-A2.7B": (14_315_784_192, {
        "model_type": "qwen2_moe", "vocab_size": 151936, "hidden_size": 2048, "num_hidden_layers": 24,
        "num_attention_heads": 16, "num_key_value_heads": 16, "intermediate_size": 5632, "rope_theta": 1000000.0,
        "max_position_embeddings": 8192, "rms_norm_eps": 1e-6, "num_experts": 60, "num_experts_per_tok": 4,
        "moe_intermediate_size": 1408, "shared_expert_intermediate_size": 5632, "decoder_sparse_step": 1,
        "norm_topk_prob": False, "tie_word_embeddings": False}),
    "Qwen3-30B-A3B": (30_532_122_624, {
        "model_type": "qwen3_moe", "vocab_size": 151936, "hidden_size": 2048, "num_hidden_layers": 48,
        "num_attention_heads": 32, "num_key_value_heads": 4, "head_dim": 128, "intermediate_size": 6144,
        "rope_theta": 1000000.0, "max_position_embeddings": 40960, "rms_norm_eps": 1e-6, "num_experts": 128,
        "num_experts_per_tok": 8, "moe_intermediate_size": 768, "decoder_sparse_step": 1, "mlp_only_layers": [],
        "norm_topk_prob": True, "tie_word_embeddings": False}),
    "DeepSeek-V2-Lite": (15_706_484_224, {
        "model_type": "deepseek_v2", "vocab_size": 102400, "hidden_size": 2048, "num_hidden_layers": 27,
        "num_attention_heads": 16, "num_key_value_heads": 16, "intermediate_size": 10944, "rope_theta": 10000,
        "max_position_embeddings": 163840, "rms_norm_eps": 1e-6, "kv_lora_rank": 512, "q_lora_rank": None,
        "qk_nope_head_dim": 128, "qk_rope_head_dim": 64, "v_head_dim": 128, "n_routed_experts": 64,
        "n_shared_experts": 2, "num_experts_per_tok": 6, "moe_intermediate_size": 1408, "first_k_dense_replace": 1,
        "moe_layer_freq": 1, "n_group": 1, "topk_group": 1, "topk_method": "greedy", "norm_topk_prob": False,
        "routed_scaling_factor": 1.0, "tie_word_embeddings": False,
        "rope_scaling": {"type": "yarn", "factor": 40, "beta_fast": 32, "beta_slow": 1, "mscale": 0.707,
                         "mscale_all_dim": 0.707, "original_max_position_embeddings": 4096}}),
    "DeepSeek-V3": (671_026_404_352, {
        "model_type": "deepseek_v3", "vocab_size": 129280, "hidden_size": 7168, "num_hidden_layers": 61,
        "num_attention_heads": 128, "num_key_value_heads": 128, "intermediate_size": 18432, "rope_theta": 10000,
        "max_position_embeddings": 163840, "rms_norm_eps": 1e-6, "kv_lora_rank": 512, "q_lora_rank": 1536,
        "qk_nope_head_dim": 128, "qk_rope_head_dim": 64, "v_head_dim": 128, "n_routed_experts": 256,
        "n_shared_experts": 1, "num_experts_per_tok": 8, "moe_intermediate_size": 2048, "first_k_dense_replace": 3,
        "moe_layer_freq": 1, "n_group": 8, "topk_group": 4, "topk_method": "noaux_tc", "norm_topk_prob": True,
        "scoring_func": "sigmoid", "routed_scaling_factor": 2.5, "tie_word_embeddings": False,
        "num_nextn_predict_layers": 1,
        "rope_scaling": {"type": "yarn", "factor": 40, "beta_fast": 32, "beta_slow": 1, "mscale": 1.0,
                         "mscale_all_dim": 1.0, "original_max_position_embeddings": 4096}}),
}  # fmt: skip


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.model_type)
def test_a_key_that_is_absent_means_what_it_means_to_transformers(family: Family):
    """Or it is asked for. Heads of keys are left out: transformers has a number there, which shapes betray."""
    changes = next(changes for model_type, changes in CASES.values() if model_type == family.model_type)
    described = {"rms_norm_eps": 1e-6, "rope_theta": 5e5, "tie_word_embeddings": False, **SHAPE, **changes}
    theirs = type(transformers.AutoConfig.for_model(family.model_type))
    read = 0
    for absent in sorted({*family.fields, *family.constants, *described, "q_lora_rank"} - {"num_key_value_heads"}):
        config = {key: value for key, value in described.items() if key != absent}
        try:
            ours = family.shape_of(config)
        except (KeyError, ValueError, TypeError):
            continue
        assert essence(ours) == essence(family.shape_of(theirs(**config).to_dict())), absent
        read += 1
    assert read >= 5


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_configurations_have_the_published_size(name: str):
    size, config = PUBLISHED[name]
    family, shape = shape_of(config, name)
    assert shape.parameters() - shape.mtp_parameters() == size
    assert family_of(shape) is family


def test_active_parameters_are_the_published_ones():
    billions = {name: shape_of(config, name)[1].active_parameters() / 1e9 for name, (_, config) in PUBLISHED.items()}
    published = {"Mixtral-8x7B": 12.9, "OLMoE-1B-7B": 1.3, "Qwen1.5-MoE-A2.7B": 2.7, "Qwen3-30B-A3B": 3.3}
    assert {name: round(billions[name], 1) for name in published} == pytest.approx(published, abs=0.11)


@pytest.mark.parametrize("case", ["qwen2_moe", "mixtral", "olmoe", "dots1", "deepseek_v2", "deepseek_v3"])
def test_operations_of_experts_are_those_that_torch_counts(case: str):
    """transformers' loop over experts, forward, three times; attention, counted whole, at its causal half."""
    from torch.utils.flop_counter import FlopCounterMode

    theirs, length = theirs_of(case), 32
    theirs.set_experts_implementation("eager")
    with torch.inference_mode(), FlopCounterMode(display=False) as counter:
        theirs(torch.zeros(1, length, dtype=torch.int64), use_cache=False)
    products = {str(op): count for op, count in counter.get_flop_counts()["Global"].items()}
    outside = sum(count for op, count in products.items() if "attention" not in op and "bmm" not in op)
    shape = shape_of(theirs.config.to_dict(), case)[1].model_copy(update={"mtp_layers": 0})
    attention = shape.layers * 3 * shape.heads * (shape.head_dim + shape.value_dim) * length
    vectors = sum(p.numel() for p in theirs.parameters() if p.dim() == 1)  # of norms and biases: no product
    assert shape.flops_per_token(length) - 6 * vectors == pytest.approx(3 * outside / length + attention)


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("Llama-3.1-8B", {"attention_bias": True}, "attention_bias=True is not supported"),
        ("Llama-3.1-8B", {"rope_scaling": {"type": "longrope"}}, "rope_type='longrope' is not supported"),
        ("Llama-3.1-8B", {"hidden_size": None}, "has no 'hidden_size'"),
        ("Llama-3.1-8B", {"partial_rotary_factor": 0.5}, "partial_rotary_factor=0.5 is not supported"),
        ("Llama-3.1-8B", {"num_hidden_layers": 10**30}, "layers: Input should be less than or equal to"),
        ("Mixtral-8x7B", {"sliding_window": 4096}, "sliding_window=4096 is not supported"),
        ("OLMoE-1B-7B", {"clip_qkv": 8.0}, "clip_qkv=8.0 is not supported"),
        ("Qwen3-30B-A3B", {"mlp_only_layers": [3]}, r"mlp_only_layers=\[3\] is not supported"),
        ("DeepSeek-V2-Lite", {"topk_method": "noaux_tc"}, "topk_method='noaux_tc' is not supported"),
        ("DeepSeek-V3", {"scoring_func": "softmax"}, "scoring_func='softmax' is not supported"),
        ("DeepSeek-V3", {"n_shared_experts": 0}, "n_shared_experts must be 1 or more"),
        ("DeepSeek-V3", {"quantization_config": {"quant_method": "fp8"}}, "quantized weights are not read"),
        ("DeepSeek-V3", {"n_group": 7}, "must divide experts"),
        ("DeepSeek-V3", {"rope_scaling": "yarn"}, "config.json holds a value of the wrong kind"),
        ("DeepSeek-V3", {"qk_rope_head_dim": "64"}, "config.json holds a value of the wrong kind"),
        ("OLMoE-1B-7B", {"num_attention_heads": 0}, "config.json holds a value of the wrong kind"),
    ],
)
def test_what_is_not_computed_is_refused(name: str, change: dict[str, Any], message: str):
    config = {key: value for key, value in (PUBLISHED[name][1] | change).items() if value is not None}
    with pytest.raises(DataError, match=message):
        shape_of(config, name)


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("Llama-3.1-8B", {"mtp_layers": 1}, "nearest, llama, differs in: .*mtp_layers 1, there 0"),
        ("Qwen2.5-0.5B", {"qk_norm": "full"}, "qk_norm 'full', there 'none'"),
        ("DeepSeek-V3", {"router": RouterSettings(groups=8, groups_per_token=4, scores_per_group=1)},
         "nearest, deepseek_v3, differs in: router.scores_per_group 1, there 2"),
    ],
)  # fmt: skip
def test_a_shape_of_no_family_trains_but_is_not_exported(name: str, change: dict[str, Any], message: str):
    _, shape = shape_of(PUBLISHED[name][1], name)
    with pytest.raises(RecipeError, match=message):
        family_of(shape.model_copy(update=change))


def test_what_only_training_uses_makes_no_other_family():
    _, shape = shape_of(PUBLISHED["DeepSeek-V3"][1], "V3")
    router = shape.router.model_copy(update={"bias_update_rate": 0.1, "sequence_aux_loss": 0.2, "capacity_factor": 1.5})
    assert family_of(shape.model_copy(update={"router": router, "initial_std": 0.1})).model_type == "deepseek_v3"


@pytest.mark.parametrize("change", [{}, {"mtp_layers": 1}, {"shared_experts": 0}])
def test_latent_attention_without_experts_is_exported_dense(tmp_path: Path, change: dict[str, int]):
    """Its configuration must not tell transformers of experts that no file holds."""
    shape = shape_of({**PUBLISHED["DeepSeek-V2-Lite"][1], **SHAPE, **LATENT}, "")[1]
    dense = shape.model_copy(update={"experts": 0, "router": RouterSettings(), **change})
    save_model(tmp_path / "native", new_model(dense, 0))
    export_hf(tmp_path / "native", tmp_path / "hf")
    assert check_export(tmp_path / "native", tmp_path / "hf", TOKENS) <= 1e-5
    import_hf(tmp_path / "hf", tmp_path / "back")
    assert load_model(tmp_path / "back" / "final").settings.experts == 0


def test_a_copy_that_differs_is_refused(tmp_path: Path):
    """A prediction module with an embedding of its own is another model."""
    shape = shape_of({**PUBLISHED["DeepSeek-V3"][1], **SHAPE, **LATENT, **ROUTED, "n_group": 2, "topk_group": 1}, "")[1]
    save_model(tmp_path / "native", new_model(shape, 0))
    export_hf(tmp_path / "native", tmp_path / "hf")
    file = tmp_path / "hf" / "model.safetensors"
    tensors = load_file(file)
    tensors["model.layers.3.embed_tokens.weight"] += 1
    save_file(tensors, file)
    with pytest.raises(DataError, match=r"model\.layers\.3\.embed_tokens\.weight differs from"):
        import_hf(tmp_path / "hf", tmp_path / "back")
    del tensors["model.layers.3.embed_tokens.weight"]
    save_file(tensors | {"model.layers.9.odd.weight": torch.ones(1)}, file)
    with pytest.raises(DataError, match=r"model\.layers\.9\.odd\.weight of shape \(1,\) has no place"):
        import_hf(tmp_path / "hf", tmp_path / "back")


@pytest.mark.parametrize(
    ("norm", "message"),
    [
        (torch.full((16,), torch.nan), "model.norm.weight holds NaN or infinite numbers"),
        (torch.full((16,), 1e300, dtype=torch.float64), "model.norm.weight holds NaN or infinite numbers"),
        (torch.ones(16, dtype=torch.int64), "model.norm.weight is stored as torch.int64"),
        (torch.ones(16).to(torch.float8_e4m3fn), "model.norm.weight is stored as torch.float8_e4m3fn"),
    ],
)
def test_weights_that_are_no_numbers_are_refused(tmp_path: Path, norm: torch.Tensor, message: str):
    config = transformers.LlamaConfig(**{**SHAPE, "hidden_size": 16, "num_hidden_layers": 1})
    transformers.LlamaForCausalLM(config).save_pretrained(tmp_path / "hf")
    weights = load_file(tmp_path / "hf" / "model.safetensors") | {"model.norm.weight": norm}
    save_file(weights, tmp_path / "hf" / "model.safetensors", {"format": "pt"})
    with pytest.raises(DataError, match=message):
        import_hf(tmp_path / "hf", tmp_path / "back")
    assert not (tmp_path / "back" / "final").exists()


@pytest.mark.parametrize("content", [None, b"[" * 100_000, b"\xff"])
def test_a_configuration_that_cannot_be_read_is_told(tmp_path: Path, content: bytes | None):
    path = tmp_path / "config.json"
    path.mkdir() if content is None else path.write_bytes(content)
    with pytest.raises(DataError, match=r"config.json (cannot be read|is not JSON)"):
        import_hf(tmp_path, tmp_path / "back")
