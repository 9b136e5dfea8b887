"""The account of memory against what autograd keeps."""

from typing import Literal

import pytest
import torch

from pipelines.errors import RecipeError
from trainer.lora import add_lora
from trainer.lora_settings import LoraSettings
from trainer.memory_account import require_memory, training_memory
from trainer.model import new_model
from trainer.model_recipe import MlaSettings, ModelSettings
from trainer.optimizer import make_optimizer
from trainer.recipe import OptimizerSettings, TrainRecipe

DENSE = ModelSettings(
    layers=4, width=64, heads=4, kv_heads=2, head_dim=16, ffn_width=160, vocab_size=128, max_sequence=128
)
EXPERTS = DENSE.model_copy(update={"experts": 8, "expert_width": 32})
LATENT = EXPERTS.model_copy(
    update={"qk_norm": "none", "kv_heads": 4, "head_dim": 24, "mtp_layers": 1,
            "mla": MlaSettings(kv_rank=32, q_rank=48, rope_dim=8, value_dim=16)}
)  # fmt: skip


def kept_bytes(
    shape: ModelSettings, compute: torch.dtype, recompute: bool = False, lora: LoraSettings | None = None
) -> int:
    """Storage that the backward pass of 4 rows of 128 tokens needs, beyond weights and tables."""
    model = new_model(shape, 0, compute).train()
    if lora is not None:
        add_lora(model, lora, 0)
    model.recompute = recompute
    own = {tensor.untyped_storage().data_ptr() for tensor in (*model.parameters(), *model.buffers())}
    found: dict[int, int] = {}
    alive = []

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            found[storage.data_ptr()] = storage.nbytes()
            alive.append(tensor)  # or its place would be given to another
        return tensor

    tokens = torch.randint(0, shape.vocab_size, (4, 129))
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        model.loss(tokens[:, :-1], tokens[:, 1:])
    return sum(found.values())


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("shape", [DENSE, EXPERTS, LATENT], ids=["dense", "experts", "latent"])
def test_activations_are_what_autograd_keeps(shape: ModelSettings, precision: str):
    compute = torch.float32 if precision == "fp32" else torch.bfloat16
    told = training_memory(shape, 512, precision, device="cpu")  # type: ignore[arg-type]
    kept = kept_bytes(shape, compute, recompute=False)  # what the loss keeps, it keeps out of autograd's sight
    assert told.activations + told.casts == pytest.approx(kept, rel=0.05)


def test_recomputation_keeps_the_layers_inputs_and_one_layer():
    deep = DENSE.model_copy(update={"layers": 12})
    told, whole = (training_memory(deep, 512, device="cpu", recompute=again) for again in (True, False))
    kept = kept_bytes(deep, torch.float32, recompute=True)
    layer = (whole.activations - told.activations + 12 * 512 * 64 * 4) / 11
    assert told.activations - layer == pytest.approx(kept, rel=0.05)


def test_the_rest_is_exact():
    told = training_memory(EXPERTS, 512)
    assert (told.weights, told.gradients, told.optimizer) == tuple(4 * EXPERTS.parameters() * n for n in (1, 1, 2))
    assert told.total > told.weights + told.gradients + told.optimizer


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("shape", [DENSE, EXPERTS], ids=["dense", "experts"])
def test_updates_keep_no_more_than_is_told(shape: ModelSettings, precision: Literal["fp32", "bf16"]):
    compute = torch.float32 if precision == "fp32" else torch.bfloat16
    lora = LoraSettings(rank=4)
    told = training_memory(shape, 512, precision, device="cpu", lora=lora)
    kept = kept_bytes(shape, compute, lora=lora)  # frozen norms keep less than the account has for them
    assert kept < told.activations + told.casts < 1.5 * kept


@pytest.mark.parametrize("lora", [None, LoraSettings(rank=4)], ids=["whole", "updates"])
@pytest.mark.parametrize("name", ["adamw", "muon"])
@pytest.mark.parametrize("shape", [DENSE, EXPERTS, LATENT], ids=["dense", "experts", "latent"])
def test_the_optimizers_state_is_what_it_holds_after_a_step(
    shape: ModelSettings, name: Literal["adamw", "muon"], lora: LoraSettings | None
):
    model = new_model(shape, 0).train()
    if lora is not None:
        add_lora(model, lora, 0)
    optimizer = make_optimizer(model, OptimizerSettings(name=name))
    tokens = torch.randint(0, shape.vocab_size, (1, 17))
    model.loss(tokens[:, :-1], tokens[:, 1:]).total.backward()
    optimizer.step()
    moments = [t for state in optimizer.state.values() for key, t in state.items() if key != "step"]
    told = training_memory(shape, 16, optimizer=name, lora=lora)
    assert told.optimizer == sum(moment.nbytes for moment in moments)
    assert told.gradients == sum(p.grad.nbytes for p in model.parameters() if p.grad is not None)
    assert told.weights == sum(parameter.nbytes for parameter in model.parameters())


def test_what_cannot_fit_is_refused_before_it_begins():
    recipe = TrainRecipe.model_validate({
        "name": "large", "model": DENSE.model_copy(update={"ffn_width": 1 << 24}).model_dump(), "device": "cpu",
        "stages": [{"tokens": 1024, "sequence_length": 128, "batch_tokens": 512, "learning_rate": 1e-3}],
    })  # fmt: skip
    with pytest.raises(
        RecipeError, match=r"'large': training takes about [\d,.]+ GiB .* this cpu has [\d,.]+; a smaller"
    ):
        require_memory(recipe, torch.device("cpu"))
    require_memory(recipe.model_copy(update={"model": DENSE}), torch.device("cpu"))
