import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
from safetensors import safe_open  # noqa: E402
from safetensors.torch import load_file, save_file  # noqa: E402

from pipelines.errors import DataError, StepError  # noqa: E402
from trainer.checkpoint import load_checkpoint, load_model, save_model  # noqa: E402
from trainer.export import check_export, export_hf  # noqa: E402
from trainer.hf_import import import_hf  # noqa: E402
from trainer.model import Decoder  # noqa: E402
from trainer.model_recipe import ModelSettings  # noqa: E402
from trainer.router_settings import RouterSettings  # noqa: E402

DENSE = ModelSettings(
    layers=2, width=32, heads=4, kv_heads=2, head_dim=16, ffn_width=48, vocab_size=320, max_sequence=64
)
UNTIED = DENSE.model_copy(update={"tie_embeddings": False, "kv_heads": 4, "rope_theta": 50_000.0})
MOE = ModelSettings(
    layers=3, width=32, heads=2, kv_heads=1, head_dim=8, ffn_width=64, vocab_size=320, max_sequence=64,
    experts=8, experts_per_token=3, expert_width=16, shared_experts=2, dense_layers=1,
    router=RouterSettings(scaling=2.5),
)  # fmt: skip
SHAPES = {"dense": DENSE, "untied": UNTIED, "moe": MOE, "moe_untied": MOE.model_copy(update={"tie_embeddings": False})}
TOKENS = np.random.default_rng(0).integers(0, 290, 60)


@pytest.fixture(params=SHAPES)
def shape(request: pytest.FixtureRequest) -> ModelSettings:
    return SHAPES[request.param]


def random_checkpoint(folder: Path, settings: ModelSettings) -> Path:
    """A model whose every tensor is random, norms and balancing biases included."""
    model = Decoder(settings)
    draw = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, tensor in sorted(model.state_dict().items()):
            middle = 1.0 if "norm" in name else 0.0
            tensor.copy_(middle + 0.2 * torch.randn(tensor.shape, generator=draw))
    save_model(folder, model)
    return folder


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def test_transformers_computes_the_same_logits(tmp_path: Path, shape: ModelSettings):
    checkpoint = random_checkpoint(tmp_path / "native", shape)
    export_hf(checkpoint, tmp_path / "hf")
    assert check_export(checkpoint, tmp_path / "hf", TOKENS) <= 1e-5


def test_logits_do_depend_on_what_is_exported(tmp_path: Path):
    """The comparison would see a balancing bias that got lost: 1e-5 is no empty promise."""
    checkpoint = random_checkpoint(tmp_path / "native", MOE)
    export_hf(checkpoint, tmp_path / "hf")
    file = tmp_path / "hf" / "model.safetensors"
    tensors = load_file(file)
    tensors["model.layers.2.mlp.gate.e_score_correction_bias"].zero_()
    save_file(tensors, file, metadata={"format": "pt"})
    with pytest.raises(StepError, match="logits differ from the checkpoint's by"):
        check_export(checkpoint, tmp_path / "hf", TOKENS)


def test_bf16_rounds_all_but_balancing_biases(tmp_path: Path):
    from transformers import AutoModelForCausalLM

    checkpoint = random_checkpoint(tmp_path / "native", MOE)
    export_hf(checkpoint, tmp_path / "full")
    export_hf(checkpoint, tmp_path / "half", precision="bf16", max_file_bytes=20_000)
    full = load_file(tmp_path / "full" / "model.safetensors")
    half = {n: t for file in (tmp_path / "half").glob("*.safetensors") for n, t in load_file(file).items()}
    assert full.keys() == half.keys()
    for name, tensor in half.items():
        biases = name.endswith("e_score_correction_bias")
        assert tensor.dtype == (torch.float32 if biases else torch.bfloat16)
        assert torch.equal(tensor, full[name] if biases else full[name].bfloat16())
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "half", dtype="auto", local_files_only=True)
    assert model.dtype == torch.bfloat16
    import_hf(tmp_path / "half", tmp_path / "back")
    back = load_model(tmp_path / "back" / "final").state_dict()
    for name, tensor in load_model(checkpoint).state_dict().items():
        rounded = tensor if name.endswith("e_score_correction_bias") else tensor.bfloat16().float()
        assert torch.equal(back[name], rounded), name


def test_the_round_trip_is_exact(tmp_path: Path, shape: ModelSettings):
    checkpoint = random_checkpoint(tmp_path / "native", shape)
    export_hf(checkpoint, tmp_path / "hf")
    import_hf(tmp_path / "hf", tmp_path / "back")
    export_hf(tmp_path / "back" / "final", tmp_path / "again")
    settings, tensors = load_checkpoint(checkpoint)
    back, same = load_checkpoint(tmp_path / "back" / "final")
    assert back == settings
    assert all(torch.equal(tensors[name], same[name]) for name in tensors)
    assert files_of(tmp_path / "hf") == files_of(tmp_path / "again")


def transformers_model(kind: str) -> Any:
    from transformers import Dots1Config, Dots1ForCausalLM, Qwen3Config, Qwen3ForCausalLM

    shared = {"vocab_size": 320, "hidden_size": 32, "num_attention_heads": 4, "num_key_value_heads": 2,
              "max_position_embeddings": 64, "initializer_range": 0.2, "intermediate_size": 48}  # fmt: skip
    torch.manual_seed(0)
    if kind == "qwen3":
        return Qwen3ForCausalLM(Qwen3Config(**shared, num_hidden_layers=2, head_dim=16, tie_word_embeddings=False))
    experts = {"n_routed_experts": 4, "n_shared_experts": 1, "num_experts_per_tok": 2, "moe_intermediate_size": 16,
               "first_k_dense_replace": 1, "norm_topk_prob": True, "routed_scaling_factor": 1.5}  # fmt: skip
    return Dots1ForCausalLM(Dots1Config(**shared, **experts, num_hidden_layers=3, sliding_window=None))


@pytest.mark.parametrize("kind", ["qwen3", "dots1"])
def test_a_model_that_transformers_wrote_is_imported(tmp_path: Path, kind: str):
    theirs = transformers_model(kind).eval()
    theirs.save_pretrained(tmp_path / "hf")
    import_hf(tmp_path / "hf", tmp_path / "native")
    ours = load_model(tmp_path / "native" / "final")
    tokens = torch.from_numpy(TOKENS).unsqueeze(0)
    with torch.inference_mode():
        assert (ours(tokens) - theirs(input_ids=tokens).logits).abs().max().item() <= 1e-5
    export_hf(tmp_path / "native" / "final", tmp_path / "back")
    assert check_export(tmp_path / "native" / "final", tmp_path / "back", TOKENS) <= 1e-5
    before = load_file(tmp_path / "hf" / "model.safetensors")
    after = load_file(tmp_path / "back" / "model.safetensors")
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_every_expert_has_its_own_tensors(tmp_path: Path):
    export_hf(random_checkpoint(tmp_path / "native", MOE), tmp_path / "hf")
    with safe_open(tmp_path / "hf" / "model.safetensors", "pt") as file:
        names = set(file.keys())
    prefix = "model.layers.1.mlp"
    assert {n for n in names if n.startswith(f"{prefix}.experts.7.")} == {
        f"{prefix}.experts.7.{part}_proj.weight" for part in ("gate", "up", "down")
    }
    assert {f"{prefix}.gate.weight", f"{prefix}.gate.e_score_correction_bias", "lm_head.weight"} <= names


def test_the_vocabulary_is_cut_to_the_tokenizer(tmp_path: Path, tiny_model: Path):
    checkpoint = random_checkpoint(tmp_path / "native", DENSE)
    metrics = export_hf(checkpoint, tmp_path / "hf", tiny_model)
    config = json.loads((tmp_path / "hf" / "config.json").read_bytes())
    known = metrics["vocab_size"]
    assert (config["vocab_size"], metrics["vocab_rows_cut"], config["eos_token_id"]) == (known, 320 - known, 0)
    assert check_export(checkpoint, tmp_path / "hf", TOKENS % known) <= 1e-5


def test_an_export_with_tokenizer_can_be_evaluated(tmp_path: Path, tiny_model: Path):
    from trainer.likelihood import Scorer

    export_hf(random_checkpoint(tmp_path / "native", MOE), tmp_path / "hf", tiny_model)
    scorer = Scorer(tmp_path / "hf")
    assert (scorer.max_length, scorer.prefix) == (64, 0)
    assert scorer.nll_nats(scorer.spans_of(scorer.encode("The river")))[0] > 0


def test_a_tokenizer_that_knows_more_is_refused(tmp_path: Path, tiny_model: Path):
    checkpoint = random_checkpoint(tmp_path / "native", DENSE.with_vocabulary(100))
    with pytest.raises(DataError, match="the model only 100"):
        export_hf(checkpoint, tmp_path / "hf", tiny_model)


def test_large_weights_are_divided(tmp_path: Path):
    checkpoint = random_checkpoint(tmp_path / "native", MOE)
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    export_hf(checkpoint, whole)
    assert export_hf(checkpoint, parts, max_file_bytes=50_000)["files"] > 2
    assert max(path.stat().st_size for path in parts.glob("*.safetensors")) < 60_000
    assert check_export(checkpoint, parts, TOKENS) == check_export(checkpoint, whole, TOKENS)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "gpt2"}, r"'gpt2' cannot be imported; supported: qwen3 \(Qwen3ForCausalLM\), qwen2"),
        ({"attention_bias": True}, "attention_bias=True is not supported"),
        ({"rope_parameters": {"rope_type": "longrope", "rope_theta": 1e4}}, "rope_type='longrope' is not supported"),
        ({"layer_types": ["sliding_attention"] * 2}, "sliding-window attention"),
        ({"quantization_config": {"quant_method": "fp8"}}, "quantized weights are not read"),
        ({"hidden_size": 64}, r"expected shape \("),
        ({"num_hidden_layers": 3}, "layers.2"),
    ],
)
def test_what_cannot_be_computed_is_refused(tmp_path: Path, change: dict, message: str):
    export_hf(random_checkpoint(tmp_path / "native", DENSE), tmp_path / "hf")
    path = tmp_path / "hf" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_bytes()) | change))
    with pytest.raises(DataError, match=message):
        import_hf(tmp_path / "hf", tmp_path / "back")


def test_broken_folders_are_named(tmp_path: Path):
    with pytest.raises(DataError, match=r"no config\.json"):
        import_hf(tmp_path, tmp_path / "back")
    export_hf(random_checkpoint(tmp_path / "native", MOE), tmp_path / "hf")
    file = tmp_path / "hf" / "model.safetensors"
    tensors = load_file(file)
    del tensors["model.layers.1.mlp.experts.3.up_proj.weight"]
    save_file(tensors, file)
    with pytest.raises(DataError, match=r"tensor model\.layers\.1\.mlp\.experts\.3\.up_proj\.weight is missing"):
        import_hf(tmp_path / "hf", tmp_path / "back")
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(DataError, match="cannot be read"):
        import_hf(tmp_path / "hf", tmp_path / "back")
    file.unlink()
    with pytest.raises(DataError, match="pickled weights are not read"):
        import_hf(tmp_path / "hf", tmp_path / "back")


def test_the_same_checkpoint_gives_the_same_bytes(tmp_path: Path, tiny_model: Path):
    checkpoint = random_checkpoint(tmp_path / "native", MOE)
    export_hf(checkpoint, tmp_path / "one", tiny_model)
    shutil.copytree(checkpoint, tmp_path / "elsewhere")
    export_hf(tmp_path / "elsewhere", tmp_path / "two", tiny_model)
    assert files_of(tmp_path / "one") == files_of(tmp_path / "two")
