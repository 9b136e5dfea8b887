"""Multi-token prediction against a loop over positions, and on its way through files."""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor

from trainer.checkpoint import load_checkpoint, save_model
from trainer.export import check_export, export_hf
from trainer.hf_import import import_hf
from trainer.model import Decoder, new_model
from trainer.model_recipe import MlaSettings, ModelSettings

SHAPE = ModelSettings(
    layers=2, width=32, heads=2, kv_heads=2, head_dim=16, ffn_width=48, vocab_size=61, max_sequence=32, qk_norm="none",
    mla=MlaSettings(kv_rank=16, rope_dim=8, value_dim=8), experts=4, experts_per_token=2, expert_width=16,
    dense_layers=1, mtp_layers=2, mtp_weight=0.3, tie_embeddings=False,
)  # fmt: skip
DOCUMENTS = torch.tensor([[0] * 5 + [1] * 7, [0] * 12])


def batch() -> tuple[Tensor, Tensor]:
    tokens = torch.randint(0, 61, (2, 13), generator=torch.Generator().manual_seed(1))
    return tokens[:, :-1], tokens[:, 1:]


def further_by_loop(model: Decoder, inputs: Tensor, targets: Tensor, documents: Tensor) -> float:
    """Mean over depths of the mean over positions of -log p(token depth + 1 places on), from the modules' own parts."""
    hidden = model.hidden(inputs, documents)
    whole = torch.cat((inputs, targets[:, -1:]), dim=1)
    means = []
    for depth, module in enumerate(model.mtp, 1):
        ahead = torch.stack([whole[:, min(t + depth, 12)] for t in range(12)], dim=1)
        hidden = module(model.embed_tokens(ahead), hidden, model._context(inputs, documents), torch.float32)
        losses = []
        for b in range(2):
            for t in range(12):
                target = t + depth + 1
                if target < 12 and documents[b, target] == documents[b, t]:
                    logits = model.output_VD @ hidden[b, t]
                    losses.append(F.cross_entropy(logits, whole[b, target]))
        means.append(torch.stack(losses).mean())
    return float(torch.stack(means).mean())


@pytest.mark.parametrize("documents", [None, DOCUMENTS], ids=["one", "packed"])
def test_the_loss_is_that_of_a_loop(documents: Tensor | None):
    model = new_model(SHAPE, 0).eval()
    inputs, targets = batch()
    with torch.no_grad():
        losses = model.loss(inputs, targets, documents)
        expected = further_by_loop(
            model, inputs, targets, torch.zeros(2, 12, dtype=torch.int64) if documents is None else documents
        )
    assert float(losses.mtp) == pytest.approx(expected, rel=1e-5)
    assert float(losses.total) == pytest.approx(float(losses.ar) + 0.3 * expected, rel=1e-5)


def test_no_guess_depends_on_another_document():
    """The last document's tokens change: what the first one's positions are asked for, and answer, does not."""
    model = new_model(SHAPE, 0).eval()
    inputs, targets = batch()
    first = DOCUMENTS[:1]
    grads = []
    for shift in (0, 1):
        changed_in, changed_out = inputs[:1].clone(), targets[:1].clone()
        changed_in[:, 5:] = (changed_in[:, 5:] + shift) % 61
        changed_out[:, 4:] = (changed_out[:, 4:] + shift) % 61
        alone = torch.where(first == 0, 0, torch.arange(12) + 1)  # the last document falls apart: it has no targets
        model.zero_grad()
        model.loss(changed_in, changed_out, alone).mtp.backward()
        grads.append([p.grad.clone() for p in model.mtp.parameters() if p.grad is not None])
    assert all(torch.equal(a, b) for a, b in zip(*grads, strict=True))


def test_every_weight_of_a_module_learns():
    model = new_model(SHAPE, 0).train()
    model.loss(*batch()).total.backward()
    for name, parameter in model.mtp.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name


def test_rows_too_short_for_a_guess_cost_nothing():
    model = new_model(SHAPE, 0).train()
    losses = model.loss(torch.tensor([[1, 2]]), torch.tensor([[2, 3]]))
    assert losses.mtp.item() == 0
    losses.total.backward()


def test_padding_is_neither_asked_nor_asked_for():
    model = new_model(SHAPE, 0).eval()
    inputs, targets = batch()
    padded = torch.tensor([[0] * 8 + [-1] * 4])
    with torch.no_grad():
        found = model.loss(inputs[:1], targets[:1], padded)
        short = model.loss(inputs[:1, :7], targets[:1, :7])  # the eighth token is known, what follows it is not
        further = model.loss(inputs[:1, :8], targets[:1, :8])
    assert found.ar.item() == pytest.approx(short.ar.item(), rel=1e-5)
    assert found.mtp.item() == pytest.approx(further.mtp.item(), rel=1e-5)


def test_prediction_is_that_of_the_same_model_without_modules():
    with_modules = new_model(SHAPE, 0).eval()
    without = Decoder(SHAPE.model_copy(update={"mtp_layers": 0})).eval()
    without.load_state_dict({n: t for n, t in with_modules.state_dict().items() if not n.startswith("mtp")})
    inputs, _ = batch()
    assert torch.equal(with_modules(inputs), without(inputs))
    assert list(with_modules.routers()) == [1, 2, 3]


def test_recomputation_changes_no_bit():
    found = []
    for recompute in (False, True):
        model = new_model(SHAPE, 0).train()
        model.recompute = recompute
        losses = model.loss(*batch(), DOCUMENTS)
        losses.total.backward()
        loads = [router.load_E.tolist() for router in model.routers().values()]
        found.append((losses.total, loads, [p.grad for p in model.parameters()]))
    assert torch.equal(found[0][0], found[1][0])
    assert found[0][1] == found[1][1]  # counted once, though seen twice
    assert all(torch.equal(a, b) for a, b in zip(found[0][2], found[1][2], strict=True))


@pytest.mark.parametrize("tied", [False, True])
def test_modules_are_kept_by_export_and_import(tmp_path: Path, tied: bool):
    shape = SHAPE.model_copy(update={"tie_embeddings": tied})
    save_model(tmp_path / "native", new_model(shape, 0))
    export_hf(tmp_path / "native", tmp_path / "hf")
    assert check_export(tmp_path / "native", tmp_path / "hf", torch.arange(30).numpy()) <= 1e-5
    written = load_file(tmp_path / "hf" / "model.safetensors")
    beside = {"enorm.weight", "hnorm.weight", "eh_proj.weight", "shared_head.norm.weight", "shared_head.head.weight",
              "embed_tokens.weight"}  # fmt: skip
    for layer in (2, 3):
        names = {n.removeprefix(f"model.layers.{layer}.") for n in written if n.startswith(f"model.layers.{layer}.")}
        assert beside < names
        assert "mlp.experts.3.up_proj.weight" in names
        assert "self_attn.kv_b_proj.weight" in names
    import_hf(tmp_path / "hf", tmp_path / "back")
    settings, tensors = load_checkpoint(tmp_path / "native")
    again, same = load_checkpoint(tmp_path / "back" / "final")
    assert again == settings
    assert all(torch.equal(tensors[name], same[name]) for name in tensors)
