"""Oracle: one token and one expert at a time, in autograd's own operations."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from trainer import grouped
from trainer.grouped import mix_experts

EXPERTS, WIDTH, HIDDEN = 5, 16, 8


def looped(x_ND: Tensor, weights_NK: Tensor, chosen_NK: Tensor, gate_up_E: Tensor, down_E: Tensor) -> Tensor:
    rows = []
    for token in range(len(x_ND)):
        total = torch.zeros_like(x_ND[0])
        for weight, expert in zip(weights_NK[token], chosen_NK[token], strict=True):
            if expert < len(down_E):
                gate, up = (gate_up_E[expert] @ x_ND[token]).chunk(2)
                total = total + weight * (down_E[expert] @ (F.silu(gate) * up))
        rows.append(total)
    return torch.stack(rows)


def numbers(seed: int, tokens: int, choices: int, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    draw = torch.Generator().manual_seed(seed)
    shapes = [(tokens, WIDTH), (tokens, choices), (EXPERTS, 2 * HIDDEN, WIDTH), (EXPERTS, WIDTH, HIDDEN)]
    made = [torch.randn(shape, generator=draw) * 0.5 for shape in shapes]
    return [x.to(torch.float32 if i == 1 else dtype).requires_grad_() for i, x in enumerate(made)]


def by_group(x_ND: Tensor, weights_NK: Tensor, chosen_NK: Tensor, *stacks: Tensor) -> Tensor:
    """The form of GPUs and of bf16, in fp32 on this CPU."""
    whole = bool((chosen_NK < EXPERTS).all())
    return grouped._ByGroup.apply(x_ND, weights_NK, *stacks, chosen_NK, whole)  # type: ignore[no-any-return]


def by_expert(x_ND: Tensor, weights_NK: Tensor, chosen_NK: Tensor, *stacks: Tensor) -> Tensor:
    gate_up_E, down_E = stacks
    return mix_experts(x_ND, weights_NK, chosen_NK, gate_up_E, down_E, bool((chosen_NK < EXPERTS).all()))


@pytest.mark.parametrize("way", [by_group, by_expert])
@settings(max_examples=15, deadline=None)
@given(st.integers(1, 40), st.integers(1, 3), st.integers(0, 99), st.sampled_from([1, 3, EXPERTS, EXPERTS + 1]))
def test_both_ways_are_the_loop_forward_and_backward(
    way: Callable[..., Tensor], tokens: int, choices: int, seed: int, below: int
):
    """Idle experts, a single one, and choices of nobody (expert number E) among the cases."""
    x_ND, weights_NK, gate_up_E, down_E = given_numbers = numbers(seed, tokens, choices)
    chosen_NK = torch.randint(0, below, (tokens, choices), generator=torch.Generator().manual_seed(seed))
    ours = way(x_ND, weights_NK, chosen_NK, gate_up_E, down_E)
    expected = looped(x_ND, weights_NK, chosen_NK, gate_up_E, down_E)
    torch.testing.assert_close(ours, expected)
    # an expanded gradient, which grouped_mm itself refuses
    mine = torch.autograd.grad(ours.sum(), given_numbers, allow_unused=True)
    theirs = torch.autograd.grad(expected.sum(), given_numbers, allow_unused=True) if expected.requires_grad else mine
    for one, other in zip(mine, theirs, strict=True):
        torch.testing.assert_close(one, torch.zeros_like(one) if other is None else other)


def test_bf16_takes_the_grouped_product():
    x_ND, weights_NK, gate_up_E, down_E = given_numbers = numbers(3, 24, 2, torch.bfloat16)
    chosen_NK = torch.randint(0, EXPERTS, (24, 2), generator=torch.Generator().manual_seed(3))
    ours = mix_experts(x_ND, weights_NK, chosen_NK, gate_up_E, down_E)
    assert ours.dtype == torch.bfloat16
    exact = [x.detach().float().requires_grad_() for x in given_numbers]
    expected = looped(exact[0], exact[1], chosen_NK, exact[2], exact[3])
    torch.testing.assert_close(ours.float(), expected, atol=0.03, rtol=0.03)
    upstream = torch.ones(24, WIDTH)
    for one, other in zip(
        torch.autograd.grad(ours, given_numbers, upstream.bfloat16()),
        torch.autograd.grad(expected, exact, upstream), strict=True,
    ):  # fmt: skip
        torch.testing.assert_close(one.float(), other, atol=0.1, rtol=0.03)


def test_what_lies_in_memory_does_not_leak_into_rows_of_nobody():
    """grouped_mm leaves rows past the last offset as they were: here full of NaN from what was freed before."""
    x_ND, weights_NK, gate_up_E, down_E = given_numbers = numbers(4, 64, 2)
    chosen_NK = torch.full((64, 2), EXPERTS)
    chosen_NK[:3] = torch.tensor([0, 1])
    for way in (by_group, by_expert):
        for _ in range(5):
            junk = [torch.full((128, size), torch.nan) for size in (WIDTH, 2 * HIDDEN, HIDDEN)]
            del junk
            answer = way(x_ND, weights_NK, chosen_NK, gate_up_E, down_E)
            grads = torch.autograd.grad(answer, given_numbers, torch.ones_like(answer))
            assert all(bool(x.isfinite().all()) for x in (answer, *grads))
            assert not answer[3:].any()


@pytest.mark.parametrize("threads", [1, 2])
def test_the_same_bits_each_time(threads: int):
    x_ND, weights_NK, gate_up_E, down_E = given_numbers = numbers(5, 200, 3)
    chosen_NK = torch.randint(0, EXPERTS, (200, 3), generator=torch.Generator().manual_seed(5))
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        for way in (by_group, by_expert):
            found = []
            for _ in range(3):
                answer = way(x_ND, weights_NK, chosen_NK, gate_up_E, down_E)
                found.append((answer, *torch.autograd.grad(answer, given_numbers, torch.ones_like(answer))))
            assert all(
                torch.equal(one, other) for again in found[1:] for one, other in zip(found[0], again, strict=True)
            )
    finally:
        torch.set_num_threads(before)


def test_frozen_experts_get_no_gradient():
    x_ND, weights_NK, gate_up_E, down_E = numbers(6, 12, 2)
    chosen_NK = torch.randint(0, EXPERTS, (12, 2), generator=torch.Generator().manual_seed(6))
    for way in (by_group, by_expert):
        answer = way(x_ND, weights_NK, chosen_NK, gate_up_E.detach(), down_E)
        answer.sum().backward()
        assert gate_up_E.grad is None
        assert down_E.grad is not None
        down_E.grad = None
