"""Oracle: torch's own products."""

import pytest
import torch
import torch.nn.functional as F

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
