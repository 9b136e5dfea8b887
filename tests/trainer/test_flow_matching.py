"""Flow matching: against the closed form for Gaussians, as a joint loss, and resumed to the bit."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch

import trainer.loop as loop
from pipelines.indexed import IndexedWriter, load_shards
from pipelines.shards import Blend, ShardSet
from trainer.checkpoint import load_model
from trainer.flow_matching import HEAD_FILE, FlowHead
from trainer.flow_settings import FlowSettings
from trainer.loop import train
from trainer.metrics import read_metrics
from trainer.model import new_model
from trainer.model_recipe import ModelSettings
from trainer.recipe import TrainRecipe

MODEL = ModelSettings(layers=1, width=16, heads=2, kv_heads=1, head_dim=8, ffn_width=24, vocab_size=32, max_sequence=16)
TOKENS = torch.arange(26).view(2, 13) % 32
JOINT = TrainRecipe.model_validate({
    "name": "joint", "model": MODEL, "flow_matching": {"weight": 0.5, "width": 16, "layers": 1},
    "stages": [{"tokens": 2048, "sequence_length": 16, "batch_tokens": 64, "learning_rate": 1e-2}],
    "checkpoint_every": 5, "validate_every": 8, "micro_batch_tokens": 32, "device": "cpu",
})  # fmt: skip


def shards_of(folder: Path) -> ShardSet:
    """One learnable domain: a short cycle of tokens, begun at each of its places."""
    with IndexedWriter(folder / "cycle", 32) as writer:
        for document in range(40):
            tokens = np.resize(np.roll(np.arange(0, 16, 2), document), 25 + document)
            writer.append(tokens, np.array([len(tokens)]))
    return load_shards(folder)


def blend_of(shards: ShardSet) -> Blend:
    return Blend.of({"cycle": 1.0}, shards)


def published(work: Path) -> dict[str, bytes]:
    files = (p for p in work.rglob("*") if p.is_file() and ".scratch" not in p.parts)
    return {p.relative_to(work).as_posix(): p.read_bytes() for p in files}


def test_the_least_loss_and_the_samples_are_those_of_a_gaussian():
    """Vectors ~ N(mean of the condition, 1): no velocity can do better than pi / 2.

    With x = (1 - t) noise + t vector, the variance of vector - noise given x is 1 / ((1 - t)^2 + t^2); its integral
    over t from 0 to 1 is pi / 2.
    """
    means = torch.tensor([[-2.0, 0.5], [1.0, 3.0]])
    head = FlowHead(FlowSettings(width=64, layers=2), width=2, values=2, seed=0)
    optimizer = torch.optim.Adam(head.parameters(), lr=3e-3)
    generator = torch.Generator().manual_seed(1)
    losses = []
    for step in range(700):
        which = torch.randint(2, (256,), generator=generator)
        values_NC = means[which] + torch.randn(256, 2, generator=generator)
        for group in optimizer.param_groups:
            group["lr"] = 3e-3 * (1 - step / 700)
        optimizer.zero_grad()
        loss = head.loss(torch.eye(2)[which], values_NC)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[0] == pytest.approx(2 + (means**2).mean().item(), rel=0.15)  # at rest: E |vector - noise|^2
    assert sum(losses[-100:]) / 100 == pytest.approx(math.pi / 2, rel=0.05)
    for condition, mean_C in enumerate(means):
        drawn_NC = head.sample(torch.eye(2)[[condition]].expand(4000, 2), 20, torch.Generator().manual_seed(2))
        assert torch.allclose(drawn_NC.mean(0), mean_C, atol=0.2)
        assert torch.allclose(drawn_NC.std(0), torch.ones(2), atol=0.15)


def test_the_straight_way_is_sampled_exactly():
    """A head whose velocity is constant carries noise by it, however few the steps."""
    head = FlowHead(FlowSettings(width=8, layers=1), width=2, values=3, seed=0)
    head.velocity = lambda x_NC, time_N, hidden_ND: torch.full_like(x_NC, 2.0)  # type: ignore[method-assign]
    noise_NC = torch.randn(5, 3, generator=torch.Generator().manual_seed(4))
    found = head.sample(torch.zeros(5, 2), 3, torch.Generator().manual_seed(4))
    assert torch.allclose(found, noise_NC + 2.0, atol=1e-6)


def joint(trunk: bool):
    model = new_model(MODEL, seed=0).train()
    model.flow = FlowHead(FlowSettings(weight=0.5, width=16, trunk=trunk), 16, 16, seed=0).train()
    torch.nn.init.ones_(model.flow.to_velocity.weight)  # at rest nothing reaches the decoder yet
    return model


def test_the_total_is_the_sum_and_words_are_as_without_it():
    model = joint(trunk=True)
    losses = model.loss(TOKENS[:, :-1], TOKENS[:, 1:])
    alone = new_model(MODEL, seed=0).train().loss(TOKENS[:, :-1], TOKENS[:, 1:])
    assert torch.equal(losses.ar, alone.ar)
    assert losses.total.item() == pytest.approx(losses.ar.item() + 0.5 * losses.flow.item())
    assert alone.flow.item() == 0
    assert torch.equal(alone.total, alone.ar)


@pytest.mark.parametrize("trunk", [True, False])
def test_the_decoder_learns_from_vectors_if_asked(trunk: bool):
    model = joint(trunk)
    model.loss(TOKENS[:, :-1], TOKENS[:, 1:]).flow.backward()
    gradient = model.get_parameter("layers.0.self_attn.o_proj.weight").grad
    assert (gradient is not None and gradient.abs().sum().item() > 0) == trunk
    assert (model.embed_tokens.weight.grad is None) != trunk  # as a target it takes none


def test_noise_goes_on_with_the_passes():
    head = FlowHead(FlowSettings(width=8, layers=1), width=2, values=3, seed=0)
    hidden, values = torch.zeros(4, 2), torch.ones(4, 3)
    first, second = head.loss(hidden, values), head.loss(hidden, values)
    again = FlowHead(FlowSettings(width=8, layers=1), width=2, values=3, seed=0)
    again.passes += 1
    assert not torch.equal(first, second)
    assert torch.equal(again.loss(hidden, values), second)
    before = int(again.passes)
    again.eval().loss(hidden, values)
    assert int(again.passes) == before  # measuring draws nothing from training


def test_a_run_learns_both_and_leaves_a_plain_model(tmp_path: Path):
    shards = shards_of(tmp_path / "shards")
    train(JOINT, blend_of(shards), tmp_path / "work", shards)
    steps = [line for line in read_metrics(tmp_path / "work" / "metrics.jsonl") if line["kind"] == "step"]
    assert steps[0]["flow"] == pytest.approx(2.0, rel=0.1)  # variance of noise plus that of a scaled embedding
    assert steps[-1]["flow"] < 0.9 * steps[0]["flow"]
    assert steps[-1]["loss"] < steps[0]["loss"] - 0.5
    assert steps[5]["total"] == pytest.approx(steps[5]["loss"] + 0.5 * steps[5]["flow"], abs=1e-5)
    assert load_model(tmp_path / "work" / "final").flow is None
    assert (tmp_path / "work" / HEAD_FILE).is_file()


def test_a_joint_run_that_was_killed_writes_the_same_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    shards = shards_of(tmp_path / "shards")
    train(JOINT, blend_of(shards), tmp_path / "whole", shards)
    step = loop.train_step

    def breaks(run, *rest):
        if run.step == 13:
            raise KeyboardInterrupt
        return step(run, *rest)

    monkeypatch.setattr(loop, "train_step", breaks)
    with pytest.raises(KeyboardInterrupt):
        train(JOINT, blend_of(shards), tmp_path / "broken", shards)
    monkeypatch.undo()
    train(JOINT, blend_of(shards), tmp_path / "broken", shards)
    assert published(tmp_path / "broken") == published(tmp_path / "whole")
