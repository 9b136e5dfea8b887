"""The most that a device can compute: what model FLOPs utilisation (MFU) is a share of.

Numbers are the makers' for dense products (no sparsity) at the clock of the data sheet; what a real 8192^3 product
reaches is lower. An unknown device's peak is measured with such a product, and said to be measured.
"""

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

MEASURED_SIZE = 512  # rows and columns of the product that is timed on a CPU: milliseconds, and beyond its caches
MEASURED_TIMES = 5


@dataclass(frozen=True)
class Accelerator:
    """A device.

    Attributes:
        name: as people write it.
        bf16_flops: floating-point operations per second of dense bf16 products.
        fp32_flops: of fp32 products without TF32.
        memory_bytes: of its own memory.
    """

    name: str
    bf16_flops: float
    fp32_flops: float
    memory_bytes: float

    def flops(self, precision: str) -> float:
        """Operations per second in `bf16` or `fp32`."""
        return self.bf16_flops if precision == "bf16" else self.fp32_flops


ACCELERATORS = (  # NVIDIA's data sheets, SXM where there is one; the longest name that fits is meant
    Accelerator("B200", 2250e12, 75e12, 180e9),
    Accelerator("GH200", 989.4e12, 66.9e12, 96e9),
    Accelerator("H200", 989.4e12, 66.9e12, 141e9),
    Accelerator("H100", 989.4e12, 66.9e12, 80e9),
    Accelerator("H800", 989.4e12, 66.9e12, 80e9),
    Accelerator("A100", 312e12, 19.5e12, 80e9),
    Accelerator("A100-40GB", 312e12, 19.5e12, 40e9),
    Accelerator("A800", 312e12, 19.5e12, 80e9),
    Accelerator("L40S", 362e12, 91.6e12, 48e9),
    Accelerator("A10", 125e12, 31.2e12, 24e9),
    Accelerator("L4", 121e12, 30.3e12, 24e9),
    Accelerator("RTX 4090", 165.2e12, 82.6e12, 24e9),
)


def find_accelerator(name: str) -> Accelerator | None:
    """The device meant by `h200` or by what a driver says, `NVIDIA H200`; None when it is not known."""
    plain = name.lower().replace("-", " ")
    fitting = [one for one in ACCELERATORS if one.name.lower().replace("-", " ") in plain]
    return max(fitting, key=lambda one: len(one.name), default=None)


def peak_flops(device: "torch.device", precision: str) -> tuple[float, str]:
    """What the device of a run can compute at most, and where that number comes from.

    Args:
        device: where the model is.
        precision: `bf16` or `fp32`.

    Returns:
        Operations per second, and the source in words.
    """
    import torch

    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
        if (known := find_accelerator(name)) is not None:
            return known.flops(precision), f"data sheet of {known.name}, dense {precision}"
        return _measured(device, dtype, 4096), f"measured: best product of 4096^3 on {name}, {precision}"
    threads = torch.get_num_threads()
    rate = _measured(device, dtype, MEASURED_SIZE)
    return rate, f"measured: best product of {MEASURED_SIZE}^3 on {threads} CPU threads, {precision}"


def _measured(device: "torch.device", dtype: "torch.dtype", size: int) -> float:
    """The best of some products; nothing random is drawn."""
    import torch

    left = torch.ones(size, size, dtype=dtype, device=device)
    best = float("inf")
    for _ in range(MEASURED_TIMES):
        started = time.perf_counter()
        torch.mm(left, left)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        best = min(best, time.perf_counter() - started)
    return 2 * size**3 / best
