#!/usr/bin/env python3
"""Times `block_scaled_gemm` beside cuBLAS's product with the same scale factors on the same tensors in one process.

    python3 benches/gpu/scaled.py [--zellige PATH] [--shape MxNxK]... [--set name=value,..]... [--save FILE]

FP8 (e4m3) by FP8 with fp32 scale factors of 1 x 128 elements of A and 128 x 128 of B, bf16 out. The peer is
torch.nn.functional.scaled_mm with the recipes BlockWise1x128 and BlockWise128x128, which wants A's factors column by column; it is
left out where it refuses a shape. Each shape runs with the library's config and with each `--set`.

CUDA events around one launch, 256 MB written before each (cold L2 cache); 30 launches of ours, 30 of cuBLAS, 30 of ours;
medians.
"""

import math
import sys

import torch
from torch.nn.functional import ScalingType, scaled_mm

import launch

# Shapes of DeepGEMM's tests and of DeepSeek-V4's FP8 layers.
SHAPES = [
    (4096, 4096, 7168),
    (4096, 7168, 16384),
    (4096, 7168, 2048),
    (4096, 24576, 1536),
    (4096, 65536, 1536),
    (4096, 2048, 7168),
    (8192, 6144, 7168),
    (8192, 7168, 3072),
    (128, 4096, 7168),
    (128, 7168, 2048),
    (128, 7168, 16384),
    (64, 7168, 16384),
]
GROUP = 128


def measure(shape, emitted, flush, launches):
    m, n, k = shape
    torch.manual_seed(1)
    a, b = (torch.randn(rows, k, device="cuda").to(torch.float8_e4m3fn) for rows in (m, n))
    a_sf = torch.rand(m, k // GROUP, device="cuda") + 0.5
    b_sf = torch.rand(n // GROUP, k // GROUP, device="cuda") + 0.5
    by_column = a_sf.t().contiguous().t()
    c = torch.empty(m, n, device="cuda", dtype=torch.bfloat16)

    def peer():
        return scaled_mm(
            a,
            b.t(),
            by_column,
            ScalingType.BlockWise1x128,
            b_sf.t(),
            ScalingType.BlockWise128x128,
            output_dtype=torch.bfloat16,
        )

    try:
        want = peer()
    except (RuntimeError, ValueError) as error:
        print(shape, "cuBLAS:", str(error).splitlines()[0], flush=True)
        want = None
    rows = []
    for settings, kernel in launch.working(shape, emitted, rows):
        config = kernel["config"]
        dims = {"m": m, "a_sf0": m, "a_sf1": k // GROUP, "b_sf0": n // GROUP, "b_sf1": k // GROUP}
        grid = (math.ceil(n / config["bn"]), math.ceil(m / config["bm"]))
        tensors = {"a": a, "a_sf": a_sf, "b": b, "b_sf": b_sf, "c": c}
        run = launch.Kernel(kernel, tensors, {}, dims, grid)
        c.fill_(float("nan"))
        for _ in range(3):
            run()
        # Some rows in f32, where the factors stand inside of the sum.
        some = slice(0, min(m, 256))
        left = a[some].float() * a_sf[some].repeat_interleave(GROUP, 1)
        right = b.float() * b_sf.repeat_interleave(GROUP, 0).repeat_interleave(GROUP, 1)
        x, y = c[some].double(), (left @ right.t()).double()
        difference = float(1 - 2 * (x * y).sum() / (x * x + y * y).sum())
        us = launch.times(run, flush, launches)
        theirs = None if want is None else launch.median(launch.times(peer, flush, launches))
        us = launch.median(us + launch.times(run, flush, launches))
        row = {
            "m": m,
            "n": n,
            "k": k,
            "settings": settings,
            "config": config,
            "cluster": run.cluster,
            "registers": run.registers,
            "local_bytes": run.local_bytes,
            "us": round(us, 2),
            "tflop_per_s": round(2 * m * n * k / us / 1e6, 1),
            "gb_per_s": round((m * k + n * k + 2 * m * n + 4 * a_sf.numel()) / us / 1e3, 1),
            "cublas_us": theirs and round(theirs, 2),
            "of_cublas": theirs and round(theirs / us, 3),
            "calc_diff_to_f32": difference,
        }
        rows.append(row)
        wrong = not difference < 1e-5
        if wrong:
            row["message"] = "the results differ"
        peer_text = f"cuBLAS {theirs:9.2f} us  {row['of_cublas']:.3f}" if theirs else "no peer"
        print(
            f"{m}x{n}x{k} {settings or 'default':30} {us:9.2f} us {row['tflop_per_s']:7.1f} TF  {peer_text}{'  WRONG' if wrong else ''}",
            flush=True,
        )
    return rows


def emit(m, n, k):
    groups = {"a_sf0": m, "a_sf1": k // GROUP, "b_sf0": n // GROUP, "b_sf1": k // GROUP}
    return {"kernel": "block_scaled_gemm", "dims": {"m": m, "n": n, "k": k} | groups}


def main():
    what = "FP8 products with scale factors of 1 x 128 and 128 x 128 elements beside cuBLAS on the same tensors in the same process"
    return launch.compare_shapes(__doc__, SHAPES, emit, measure, what)


if __name__ == "__main__":
    sys.exit(main())
