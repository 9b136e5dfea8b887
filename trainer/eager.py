"""Functions that `torch.compile` leaves as they are, with their types kept (torch's own decorator loses them)."""

from collections.abc import Callable
from typing import ParamSpec, TypeVar

import torch

Given = ParamSpec("Given")
Answer = TypeVar("Answer")


def not_compiled(function: Callable[Given, Answer]) -> Callable[Given, Answer]:
    """The function, run by Python even within compiled code."""
    return torch.compiler.disable(function)  # type: ignore[return-value]
