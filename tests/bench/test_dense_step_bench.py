"""A dense training step against transformers and a plain loop in the manner of nanoGPT: same shape, same work.

All three compute the same function (Qwen3's: norms on queries and keys, rotary positions, SwiGLU, tied embeddings) on
the same tokens in fp32 on one thread: forward, backward, clip at 1, AdamW. Steps take turns, CPU time is counted, and
what is compared is the median of the ratios of neighbours.
"""

import statistics
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.bench.cpu_time import cpu_seconds
from trainer.device import torch_threads
from trainer.model import new_model
from trainer.model_recipe import ModelSettings
from trainer.optimizer import make_optimizer, set_learning_rate
from trainer.recipe import OptimizerSettings

pytestmark = pytest.mark.bench

SHAPES = {
    "1M": {"layers": 4, "width": 128, "heads": 4, "kv_heads": 4, "head_dim": 32, "ffn_width": 352, "max_sequence": 128},
    "10M": {"layers": 6, "width": 320, "heads": 5, "kv_heads": 5, "head_dim": 64, "ffn_width": 896,
            "max_sequence": 256},
}  # fmt: skip
BATCH = {"1M": 16, "10M": 8}
ROUNDS = {"1M": 12, "10M": 5}
Step = Callable[[], float]


def updated(loss: Tensor, model: nn.Module, optimizer: torch.optim.Optimizer) -> float:
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return float(loss.detach())


def loams(settings: ModelSettings, tokens_BT: Tensor) -> tuple[Step, nn.Module]:
    model = new_model(settings, 0).train()
    optimizer = make_optimizer(model, OptimizerSettings())
    set_learning_rate(optimizer, 1e-3)
    inputs_BT, targets_BT = tokens_BT[:, :-1].contiguous(), tokens_BT[:, 1:].contiguous()
    return lambda: updated(model.loss(inputs_BT, targets_BT).total, model, optimizer), model


def of_transformers(settings: ModelSettings, tokens_BT: Tensor, weights: dict[str, Tensor]) -> Step:
    from transformers import Qwen3Config, Qwen3ForCausalLM

    model = Qwen3ForCausalLM(Qwen3Config(
        vocab_size=settings.vocab_size, hidden_size=settings.width, intermediate_size=settings.ffn_width,
        num_hidden_layers=settings.layers, num_attention_heads=settings.heads, num_key_value_heads=settings.kv_heads,
        head_dim=settings.head_dim, max_position_embeddings=settings.max_sequence, tie_word_embeddings=True,
        use_cache=False,
    )).train()  # fmt: skip
    model.model.load_state_dict(weights)
    optimizer = torch.optim.AdamW(decaying(model), lr=1e-3, betas=(0.9, 0.95), fused=True)
    inputs_BT, targets_N = tokens_BT[:, :-1], tokens_BT[:, 1:].flatten()

    def step() -> float:
        logits_BTV = model(input_ids=inputs_BT).logits
        return updated(F.cross_entropy(logits_BTV.flatten(0, 1), targets_N), model, optimizer)

    return step


def decaying(model: nn.Module) -> list[dict[str, object]]:
    matrices = [p for p in model.parameters() if p.dim() >= 2]
    return [{"params": matrices, "weight_decay": 0.1},
            {"params": [p for p in model.parameters() if p.dim() < 2], "weight_decay": 0.0}]  # fmt: skip


class Block(nn.Module):
    def __init__(self, s: ModelSettings) -> None:
        super().__init__()
        self.s, inner = s, s.heads * s.head_dim
        self.input_layernorm = nn.RMSNorm(s.width, eps=s.norm_eps)
        self.post_attention_layernorm = nn.RMSNorm(s.width, eps=s.norm_eps)
        self.q_norm, self.k_norm = nn.RMSNorm(s.head_dim, eps=s.norm_eps), nn.RMSNorm(s.head_dim, eps=s.norm_eps)
        self.q_proj, self.k_proj, self.v_proj = (nn.Linear(s.width, inner, bias=False) for _ in range(3))
        self.o_proj = nn.Linear(inner, s.width, bias=False)
        self.gate_proj, self.up_proj = (nn.Linear(s.width, s.ffn_width, bias=False) for _ in range(2))
        self.down_proj = nn.Linear(s.ffn_width, s.width, bias=False)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        batch, length, _ = x.shape
        h = self.input_layernorm(x)
        q, k, v = (p(h).view(batch, length, self.s.heads, self.s.head_dim).transpose(1, 2)
                   for p in (self.q_proj, self.k_proj, self.v_proj))  # fmt: skip
        q, k = turned(self.q_norm(q), cos, sin), turned(self.k_norm(k), cos, sin)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.o_proj(y.transpose(1, 2).reshape(batch, length, -1))
        h = self.post_attention_layernorm(x)
        return x + self.down_proj(F.silu(self.gate_proj(h)) * self.up_proj(h))


def turned(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat((-second, first), dim=-1) * sin


class Plain(nn.Module):
    """What one writes down at first."""

    def __init__(self, s: ModelSettings, weights: dict[str, Tensor]) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(s.vocab_size, s.width)
        self.layers = nn.ModuleList(Block(s) for _ in range(s.layers))
        self.norm = nn.RMSNorm(s.width, eps=s.norm_eps)
        inverse = s.rope_theta ** (-torch.arange(0, s.head_dim, 2) / s.head_dim)
        angles = torch.outer(torch.arange(s.max_sequence), inverse).repeat(1, 2)
        self.cos, self.sin = angles.cos(), angles.sin()
        shorter = {name.replace(".self_attn.", ".").replace(".mlp.", "."): tensor for name, tensor in weights.items()}
        self.load_state_dict(shorter)

    def forward(self, inputs: Tensor, targets: Tensor) -> Tensor:
        x = self.embed_tokens(inputs)
        for layer in self.layers:
            x = layer(x, self.cos, self.sin)
        logits = F.linear(self.norm(x), self.embed_tokens.weight)
        return F.cross_entropy(logits.flatten(0, 1), targets.flatten())


def plain_loops(settings: ModelSettings, tokens_BT: Tensor, weights: dict[str, Tensor]) -> Step:
    model = Plain(settings, weights)
    optimizer = torch.optim.AdamW(decaying(model), lr=1e-3, betas=(0.9, 0.95))
    inputs_BT, targets_BT = tokens_BT[:, :-1], tokens_BT[:, 1:]
    return lambda: updated(model(inputs_BT, targets_BT), model, optimizer)


@pytest.mark.parametrize("vocabulary", [512, 4096, 32_768])
@pytest.mark.parametrize("size", ["1M", "10M"])
def test_dense_step(size: str, vocabulary: int):
    settings = ModelSettings.model_validate({**SHAPES[size], "vocab_size": vocabulary})
    tokens_BT = torch.randint(0, vocabulary, (BATCH[size], settings.max_sequence + 1),
                              generator=torch.Generator().manual_seed(0))  # fmt: skip
    with torch_threads(1):
        ours, model = loams(settings, tokens_BT)
        weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        steps = {
            "loam": ours, "transformers": of_transformers(settings, tokens_BT, weights),
            "plain": plain_loops(settings, tokens_BT, weights),
        }  # fmt: skip
        for _ in range(3):  # the same work: losses go the same way
            losses = [step() for step in steps.values()]
            assert losses == pytest.approx([losses[0]] * 3, rel=1e-3)
        times: dict[str, list[float]] = {name: [] for name in steps}
        for _ in range(max(3, ROUNDS[size] if vocabulary < 32_768 else ROUNDS[size] // 3)):
            for name, step in steps.items():
                times[name].append(cpu_seconds(step))
    ratios = {name: statistics.median(t / o for t, o in zip(times[name], times["loam"], strict=True)) for name in times}
    rate = tokens_BT[:, :-1].numel() / min(times["loam"])
    print(
        f"\n{size}, vocabulary {vocabulary}: {settings.parameters() / 1e6:.2f}M parameters, loam {rate:,.0f} tokens/s, "
        f"{rate * settings.flops_per_token(settings.max_sequence) / 1e9:.0f} GFLOP/s; "
        f"{ratios['transformers']:.2f} times transformers' speed, {ratios['plain']:.2f} times the plain loop's"
    )
