"""Oracle: the router's own count of its choices on a training pass over the same windows."""

import numpy as np
import pytest
import torch

from pipelines.indexed import IndexedWriter, load_shards
from trainer.model import new_model
from trainer.model_recipe import ModelSettings
from trainer.routing import routing_by_domain

SHAPE = ModelSettings(layers=2, width=16, heads=1, kv_heads=1, head_dim=16, ffn_width=32, vocab_size=32,
                      max_sequence=16, experts=4, experts_per_token=2, expert_width=8, dense_layers=1)  # fmt: skip


@pytest.fixture
def shards(tmp_path):
    for name, top in (("few", 3), ("many", 31)):
        with IndexedWriter(tmp_path / name, 32) as writer:
            writer.append(np.random.default_rng(top).integers(0, top, 65), np.array([65]))
    return load_shards(tmp_path)


def test_load_is_the_routers_own_count_and_entropies_are_shares(shards):
    model = new_model(SHAPE, seed=0).eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    found = routing_by_domain(model, shards, 16, 64)
    assert not model.training
    assert all(before[name].equal(value) for name, value in model.state_dict().items())
    for shard in shards.shards:
        tokens = torch.from_numpy(np.fromfile(f"{shard.prefix}.bin", np.uint16)[:64].astype(np.int64)).view(4, 16)
        model.train()
        with torch.no_grad():
            model(tokens)
        counted_E = model.routers()[1].rebalance().numpy()
        model.load_state_dict(before)
        model.eval()
        layer = found[shard.name]["1"]
        assert layer["load"] == pytest.approx((counted_E / counted_E.sum()).tolist(), abs=1e-6)
        share_E = counted_E[counted_E > 0] / counted_E.sum()
        assert layer["load_entropy"] == pytest.approx(-(share_E * np.log(share_E)).sum() / np.log(4), abs=1e-6)
        assert layer["router_entropy"] == pytest.approx(1, abs=0.01)  # fresh routers score all experts alike
    assert set(found["few"]) == {"1"}  # layer 0 is dense


def test_modules_for_further_tokens_are_not_asked(shards):
    """They have routers of their own, which held-out text never reaches."""
    found = routing_by_domain(new_model(SHAPE.model_copy(update={"mtp_layers": 1}), seed=0), shards, 16, 64)
    assert set(found["few"]) == set(found["many"]) == {"1"}
