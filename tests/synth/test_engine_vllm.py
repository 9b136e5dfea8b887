"""What vLLM's engines do beyond what all engines do; all of it slow."""

import importlib
import importlib.util
import json
import multiprocessing
from contextlib import closing, nullcontext
from pathlib import Path

import pytest
import torch

from pipelines.errors import DataError, StepError
from synth.engine_vllm import check_heads
from synth.engines import EngineSettings, open_engine
from tests.synth.chat_model import answers, ask
from trainer.checkpoint import save_model
from trainer.export import export_hf
from trainer.model import Decoder
from trainer.model_recipe import MlaSettings, ModelSettings, RopeSettings
from trainer.router_settings import RouterSettings

needs_vllm = pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="needs vLLM; make setup-vllm")
PROMPTS = ("Soil is", "Clay is", "Loam holds water.", "", "Ton, Sand und Schluff: Lehm", "土壤", "1 + 1 =", "x" * 40)
DENSE = ModelSettings(
    layers=2, width=64, heads=2, kv_heads=1, head_dim=32, ffn_width=96, vocab_size=320, max_sequence=128
)
EXPERTS = {"layers": 3, "experts": 8, "experts_per_token": 3, "expert_width": 32}
SOFTMAX = RouterSettings(score="softmax")
PLAIN = {**EXPERTS, "qk_norm": "none", "shared_experts": 0, "dense_layers": 0}
MLA = MlaSettings(kv_rank=512, rope_dim=64, value_dim=32)
LATENT = DENSE.model_copy(update={**EXPERTS, "kv_heads": 2, "qk_norm": "none", "head_dim": 96, "mla": MLA})
YARN = RopeSettings(kind="yarn", factor=4.0, original_positions=32, mscale=1.0, mscale_all_dim=1.0)
SMALL = MlaSettings(kv_rank=48, q_rank=24, rope_dim=16, value_dim=24)
SHAPES = {
    "qwen3": DENSE,
    "qwen2": DENSE.model_copy(update={"qk_norm": "none", "qkv_bias": True}),
    "llama": DENSE.model_copy(update={"qk_norm": "none", "rope": RopeSettings(
        kind="llama3", factor=8.0, original_positions=32)}),
    "mixtral": DENSE.model_copy(update={**PLAIN, "router": RouterSettings(score="softmax_chosen")}),
    "olmoe": DENSE.model_copy(update={**PLAIN, "kv_heads": 2, "qk_norm": "full", "router": RouterSettings(
        score="softmax", normalize=False)}),
    "qwen2_moe": DENSE.model_copy(update={**PLAIN, "qkv_bias": True, "shared_experts": 1, "shared_width": 64,
                                          "shared_gate": True, "expert_every": 2, "router": SOFTMAX}),
    "qwen3_moe": DENSE.model_copy(update={**PLAIN, "qk_norm": "head", "router": SOFTMAX}),
    "dots1": DENSE.model_copy(update={**EXPERTS, "shared_experts": 2, "router": RouterSettings(scaling=2.5)}),
    "deepseek_v2": LATENT.model_copy(update={"router": RouterSettings(
        score="softmax", normalize=False, groups=4, groups_per_token=2, scores_per_group=1, scaling=1.7)}),
    "deepseek_v3": LATENT.model_copy(update={
        "mla": MLA.model_copy(update={"q_rank": 48}), "mtp_layers": 1,
        "router": RouterSettings(groups=4, groups_per_token=2, scores_per_group=2, scaling=2.5)}),
    "deepseek_v3 yarn": LATENT.model_copy(update={"rope": YARN}),
    "deepseek_v3 expanded": LATENT.model_copy(update={"head_dim": 32, "mla": SMALL}),
}  # fmt: skip


def exported(folder: Path, tiny_model: Path, family: str) -> Path:
    """An export whose every number is random, norms and balancing biases included."""
    torch.manual_seed(1)
    network = Decoder(SHAPES[family])
    with torch.no_grad():
        for name, tensor in sorted(network.state_dict().items()):
            tensor.normal_(1.0 if "norm" in name else 0.0, 0.2)
    save_model(folder / "native", network)
    told = export_hf(folder / "native", folder / "hf", tiny_model)
    assert told["architecture"].lower() == f"{family.split()[0].replace('_', '')}forcausallm"
    return folder / "hf"


@pytest.mark.slow
@needs_vllm
@pytest.mark.parametrize("family", SHAPES)
def test_vllm_writes_what_transformers_writes_from_an_export(
    tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch, family: str
):
    monkeypatch.setenv("VLLM_MLA_DISABLE", str(int("expanded" in family)))
    folder = exported(tmp_path, tiny_model, family)
    requests = [ask(content, max_tokens=40) for content in PROMPTS]
    importlib.import_module("numba")  # as after kernels ran in this process, which vLLM's start must bear
    before = set(multiprocessing.active_children())
    with closing(open_engine(EngineSettings(name="vllm"), folder)) as engine:
        found = answers(engine, *requests)
        started = set(multiprocessing.active_children()) - before
    assert started
    for process in started:  # told to end; on a busy machine killed, which takes a while too
        process.join(60)
        assert not process.is_alive()
    assert found == answers(open_engine(EngineSettings(), folder), *requests)
    assert len({response.text for response in found}) == len(PROMPTS)


@pytest.mark.slow
@needs_vllm
def test_a_server_writes_the_same_with_latent_attention(tmp_path: Path, tiny_model: Path):
    folder = exported(tmp_path, tiny_model, "deepseek_v2")
    requests = [ask(content, max_tokens=40) for content in PROMPTS]
    with closing(open_engine(EngineSettings(name="vllm", serve=True), folder, tmp_path)) as engine:
        found = answers(engine, *requests)
    expected = answers(open_engine(EngineSettings(), folder), *requests)
    # a server holds back bytes at the end that are no character yet
    texts = [[response.text.rstrip("\ufffd") for response in responses] for responses in (found, expected)]
    assert texts[0] == texts[1]


@pytest.mark.slow
@needs_vllm
@pytest.mark.skipif(torch.cuda.is_available(), reason="GPU kernels take other heads")
@pytest.mark.parametrize("serve", [False, True], ids=["offline", "serve"])
def test_heads_without_a_cpu_kernel_are_named(tiny_model: Path, tmp_path: Path, serve: bool):
    engine = open_engine(EngineSettings(name="vllm", serve=serve), tiny_model, tmp_path)
    with pytest.raises(DataError, match="attention heads of 8, vLLM on the CPU takes 32, 64"):
        answers(engine, ask())


@pytest.mark.slow
@needs_vllm
@pytest.mark.parametrize(("expanded", "nope", "rotated", "refused"), [
    (0, 24, 64, None),
    (0, 24, 16, "latents of 512 and 16, vLLM on the CPU takes 512 and 64; set VLLM_MLA_DISABLE=1"),
    (1, 16, 16, None),
    (1, 24, 64, "attention heads of 88, vLLM on the CPU takes 32, 64"),
])  # fmt: skip
def test_latents_without_a_cpu_kernel_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, expanded: int, nope: int, rotated: int, refused: str | None
):
    """Whole models are in the test above; `head_dim` is what transformers writes beside latents."""
    monkeypatch.setenv("VLLM_MLA_DISABLE", str(expanded))
    config = {"kv_lora_rank": 512, "qk_rope_head_dim": rotated, "qk_nope_head_dim": nope}
    (tmp_path / "config.json").write_text(json.dumps(config | {"head_dim": rotated}))
    with pytest.raises(DataError, match=refused) if refused else nullcontext():
        check_heads(tmp_path)


@pytest.mark.slow
@needs_vllm
@pytest.mark.parametrize("serve", [False, True], ids=["offline", "serve"])
def test_a_model_that_vllm_cannot_load_is_one_line(tmp_path: Path, chat_model: Path, serve: bool):
    folder = tmp_path / "model"
    folder.mkdir()
    for file in chat_model.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    config = json.loads((chat_model / "config.json").read_bytes()) | {
        "architectures": ["NobodyKnows"],
        "model_type": "no",
    }
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(StepError, match=r"did not start on [^\n]*$"):
        answers(open_engine(EngineSettings(name="vllm", serve=serve), folder, tmp_path), ask())
