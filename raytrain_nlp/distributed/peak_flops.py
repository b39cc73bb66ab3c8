"""Peak rates of NVIDIA GPUs in dense matrix products, by the name that CUDA gives them.

In TFLOP/s, without structured sparsity (datasheets of Hopper and Blackwell print the doubled figures), at boost clock;
of GeForce and RTX cards with accumulation in fp32, which is what training uses. Sources, all NVIDIA's:

    B200, GB200                       "NVIDIA Blackwell Architecture Technical Brief", HGX B200 and GB200 NVL72 datasheets
    H100, H200, H800, H20, GH200      H100 (PCIe, SXM, NVL), H200 (SXM, NVL) and GH200 datasheets
    A100, A800, A30, A40, A10, A10G, A2, L4, L40, L40S, T4, V100      their datasheets
    RTX A, RTX Ada, GeForce 30        "NVIDIA Ampere GA102 GPU Architecture", appendix; "NVIDIA Ada GPU Architecture"
    GeForce 40, GeForce 50            "NVIDIA Ada GPU Architecture", "NVIDIA RTX Blackwell GPU Architecture", appendices

A GPU that is not here has no known peak: a guessed one would make a wrong MFU.
"""  # noqa: E501

from __future__ import annotations

import re
from typing import NamedTuple


class Peak(NamedTuple):
    """TFLOP/s by precision; None where the GPU has no unit for it."""

    bf16: float | None
    fp16: float
    tf32: float | None
    fp32: float


def _tensor(half: float, tf32: float, fp32: float) -> Peak:
    return Peak(half, half, tf32, fp32)


_DATA_CENTRE = {
    r"B200": _tensor(2250, 1125, 75),
    r"GB200": _tensor(2500, 1250, 80),
    r"GH200 .*|H200|H100 80GB HBM3|H100 SXM.*|H100 64GB HBM2|H800": _tensor(989.4, 494.7, 66.9),
    r"H200 NVL|H100 NVL": _tensor(835.5, 417.5, 60),
    r"H100 PCIe|H800 PCIe": _tensor(756, 378, 51.2),
    r"H20": _tensor(148, 74, 44),
    r"A100[- ].*|A800[- ].*": _tensor(312, 156, 19.5),
    r"A30": _tensor(165, 82, 10.3),
    r"A40": _tensor(149.7, 74.8, 37.4),
    r"A10": _tensor(125, 62.5, 31.2),
    r"A10G": _tensor(70, 35, 31.5),
    r"A2": _tensor(18, 9, 4.5),
    r"L4": _tensor(121, 60, 30.3),
    r"L40": _tensor(181, 90.5, 90.5),
    r"L40S": _tensor(362, 183, 91.6),
    r"(Tesla )?T4": Peak(None, 65, None, 8.1),
    r"(Tesla )?V100-SXM.*": Peak(None, 125, None, 15.7),
    r"(Tesla )?V100-PCIE.*": Peak(None, 112, None, 14),
    r"(Tesla )?V100S-PCIE.*": Peak(None, 130, None, 16.4),
}
_WORKSTATION = {
    r"RTX A6000": _tensor(154.8, 77.4, 38.7),
    r"RTX A5000": _tensor(111.1, 55.6, 27.8),
    r"RTX 6000 Ada Generation": _tensor(364.2, 182.1, 91.1),
    r"GeForce RTX 3080": _tensor(59.5, 29.8, 29.8),
    r"GeForce RTX 3090": _tensor(71.2, 35.6, 35.6),
    r"GeForce RTX 3090 Ti": _tensor(80, 40, 40),
    r"GeForce RTX 4070 Ti": _tensor(80.2, 40.1, 40.1),
    r"GeForce RTX 4080": _tensor(97.5, 48.7, 48.7),
    r"GeForce RTX 4080 SUPER": _tensor(104.4, 52.2, 52.2),
    r"GeForce RTX 4090": _tensor(165.2, 82.6, 82.6),
    r"GeForce RTX 5080": _tensor(112.6, 56.3, 56.3),
    r"GeForce RTX 5090": _tensor(209.5, 104.8, 104.8),
}
_KNOWN = {re.compile(pattern): peak for pattern, peak in (_DATA_CENTRE | _WORKSTATION).items()}


def peak_flops(name: str, precision: str) -> float | None:
    """FLOP/s of dense matrix products at their best, or None where the GPU is not in the table or lacks the precision.

    Args:
        name: as `torch.cuda.get_device_name` has it. The whole name counts: a laptop's GPU or a slice of one (MIG) has
            another peak.
        precision: "bf16", "fp16", "tf32" or "fp32".
    """
    bare = name.removeprefix("NVIDIA ").strip()
    if " MIG " in f" {bare} ":
        return None
    peak = next((peak for pattern, peak in _KNOWN.items() if pattern.fullmatch(bare)), None)
    rate: float | None = getattr(peak, precision) if peak else None
    return rate * 1e12 if rate else None
