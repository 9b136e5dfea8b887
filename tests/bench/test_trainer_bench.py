from pathlib import Path

import numpy as np
import pytest
import torch

from pipelines.indexed import IndexedWriter, load_shards
from pipelines.recipe import load_recipe
from trainer.device import torch_threads
from trainer.model import new_model
from trainer.optimizer import make_optimizer, set_learning_rate
from trainer.recipe import TrainRecipe
from trainer.shard_stream import ShardReader, ShardStream
from trainer.stream import BlendStream, Part

pytestmark = pytest.mark.bench


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("name", ["proxy-tiny", "moe-tiny"])
def test_train_step(benchmark, name: str, precision: torch.dtype, threads: int):
    recipe = load_recipe(name, TrainRecipe)
    settings, length = recipe.model.with_vocabulary(4096), recipe.stages[0].sequence_length
    model = new_model(settings, 0, precision).train()
    optimizer = make_optimizer(model, recipe.optimizer)
    set_learning_rate(optimizer, 1e-3)
    tokens = torch.randint(0, 4096, (16, length + 1), generator=torch.Generator().manual_seed(0))

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        model.loss(tokens[:, :-1], tokens[:, 1:]).total.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()

    with torch_threads(threads):
        benchmark.pedantic(step, rounds=10, warmup_rounds=2)
    rate = 16 * length / benchmark.stats.stats.min
    benchmark.extra_info["tokens_per_s"] = round(rate)
    benchmark.extra_info["gflops"] = round(rate * settings.flops_per_token(length) / 1e9, 1)


def test_stream(benchmark, tmp_path: Path):
    lengths = np.random.default_rng(0).integers(20, 800, 20_000)
    with IndexedWriter(tmp_path / "a", 4096) as writer:
        writer.append(np.arange(lengths.sum()) % 4096, lengths)
    shards = load_shards(tmp_path)
    stream = BlendStream([Part(1.0, ShardStream(ShardReader(shards.named("a"), 0), 128))], 128, 32_000)
    stream.batch(0, 1)
    benchmark.pedantic(lambda: stream.batch(0, 32_000), rounds=3)
    benchmark.extra_info["tokens_per_s"] = round(32_000 * 128 / benchmark.stats.stats.min)
