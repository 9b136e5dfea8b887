"""Oracle: torch's own products."""

import pytest
import torch
import torch.nn.functional as F

from trainer import products
from trainer.model import new_model
from trainer.model_recipe import ModelSettings
from trainer.products import by_onednn, linear, product


@pytest.mark.parametrize("shape", [(3, 5, 12), (7, 12), (0, 12), (2, 0, 12)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_linear_is_torchs_forward_and_backward(shape: tuple[int, ...], dtype: torch.dtype):
    draw = torch.Generator().manual_seed(0)
    x = torch.randn(shape, generator=draw).to(dtype).requires_grad_()
    weight, bias = (torch.randn(size, generator=draw).to(dtype).requires_grad_() for size in ((6, 12), (6,)))
    ours, theirs = linear(x, weight, bias), F.linear(x, weight, bias)
    torch.testing.assert_close(ours, theirs)
    upstream = torch.ones(()).to(dtype).expand(ours.shape)  # without strides, as the gradient of a sum is
    torch.testing.assert_close(
        torch.autograd.grad(ours, (x, weight, bias), upstream), torch.autograd.grad(theirs, (x, weight, bias), upstream)
    )


def test_products_take_transposed_views():
    x, y = torch.randn(9, 4), torch.randn(9, 6)
    torch.testing.assert_close(product(x.t(), y.t()), x.t() @ y)
    assert by_onednn(x)
    assert not by_onednn(x.bfloat16())


def test_a_frozen_weight_gets_no_gradient():
    x, weight = torch.randn(3, 4, requires_grad=True), torch.randn(5, 4)
    linear(x, weight).sum().backward()
    assert x.grad is not None
    torch.testing.assert_close(x.grad, weight.sum(dim=0).expand(3, 4))


def test_without_onednn_a_model_computes_the_same(monkeypatch: pytest.MonkeyPatch):
    """As where torch was built without it, or calls its operator otherwise."""
    shape = ModelSettings(layers=2, width=16, heads=2, kv_heads=1, head_dim=8, ffn_width=24, vocab_size=32,
                          experts=4, expert_width=8)  # fmt: skip
    tokens = torch.arange(34).view(2, 17) % 32

    def gradients() -> dict[str, torch.Tensor]:
        model = new_model(shape, 0)
        model.loss(tokens[:, :-1], tokens[:, 1:]).total.backward()
        return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}

    expected = gradients()
    assert products.ONEDNN
    monkeypatch.setattr(products, "ONEDNN", False)
    assert not products.by_onednn(torch.ones(1))
    torch.testing.assert_close(gradients(), expected)
