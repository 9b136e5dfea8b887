"""Run a function with linear algebra on one thread.

Matrices here have a few hundred rows: threads cost more than they give (on a busy machine a hundred times more), and a
sum that is split differently ends in different bits, so that a fit would depend on the machine's number of cores.
"""

import functools
from collections.abc import Callable
from typing import ParamSpec, TypeVar

Given = ParamSpec("Given")
Result = TypeVar("Result")


def single_threaded(function: Callable[Given, Result]) -> Callable[Given, Result]:
    """Decorate a function so that NumPy's and SciPy's BLAS use one thread while it runs."""

    @functools.wraps(function)
    def bound(*args: Given.args, **kwargs: Given.kwargs) -> Result:
        import scipy.linalg  # noqa: F401  SciPy brings a BLAS of its own: only what is loaded can be limited
        from threadpoolctl import threadpool_limits

        with threadpool_limits(1, "blas"):
            return function(*args, **kwargs)

    return bound
