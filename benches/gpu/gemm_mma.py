#!/usr/bin/env python3
"""Times `gemm` in bf16 through mma.sync (target sm_80) beside cuBLAS's own kernels of that instruction family.

    python3 benches/gpu/gemm_mma.py [--zellige PATH] [--shape MxNxK]... [--set name=value,..]... [--save FILE]

C = A B^T, the weight B as [N, K]. On Hopper cuBLAS chooses kernels of wgmma by itself; its kernels for sm_80 are still in the
library. This asks cublasLt for every algorithm that it has for the product, runs one config of each under PyTorch's profiler to
learn the name of its kernel, and times every tile, stage count and swizzle of those that are made of mma.sync. The quickest is
the peer, timed again with ours in turn; torch.mm (wgmma) is timed beside both.
"""

import ctypes
import itertools
import sys

import torch

import gemm
import launch

SHAPES = [
    (4096, 4096, 4096),
    (8192, 8192, 8192),
    (4096, 7168, 2048),
    (4096, 4096, 7168),
    (4096, 2048, 7168),
    (8192, 1536, 4096),
    (4096, 6144, 7168),
    (8192, 7168, 3072),
]
# Values of cublasLt.h.
COMPUTE_32F, R_32F, R_16BF = 68, 0, 14
DESC_TRANSA = 3
CAP_SWIZZLING, CAP_TILES, CAP_STAGES = 2, 6, 13
CONFIG_TILE, CONFIG_SWIZZLING, CONFIG_STAGES = 1, 4, 6
MMA_SYNC = ("sm80", "ampere", "cutlass_80", "16816")
ROUGH_LAUNCHES = 3


class Lt:
    """cublasLt for C[m, n] = A[m, k] B[n, k]^T, which it sees as the transposed product of column-major matrices."""

    def __init__(self, a, b, c):
        torch.mm(a, b.t())
        loaded = {line.split()[-1] for line in open("/proc/self/maps") if "libcublasLt.so" in line}
        self.lib = ctypes.CDLL(loaded.pop())
        self.tensors = (b, a, c)
        (m, k), n = a.shape, b.shape[0]
        self.handle, self.desc = ctypes.c_void_p(), ctypes.c_void_p()
        self.must("cublasLtCreate", ctypes.byref(self.handle))
        self.must("cublasLtMatmulDescCreate", ctypes.byref(self.desc), COMPUTE_32F, R_32F)
        transposed = ctypes.c_int32(1)
        self.must("cublasLtMatmulDescSetAttribute", self.desc, DESC_TRANSA, ctypes.byref(transposed), ctypes.c_size_t(4))
        self.layouts = [self.layout(k, n), self.layout(k, m), self.layout(n, m)]
        self.one, self.zero = ctypes.c_float(1), ctypes.c_float(0)
        self.workspace = torch.empty(32 << 20, dtype=torch.uint8, device="cuda")

    def call(self, name, *args):
        return getattr(self.lib, name)(*args)

    def must(self, name, *args):
        status = self.call(name, *args)
        if status != 0:
            raise RuntimeError(f"{name}: status {status}")

    def layout(self, rows, cols):
        made = ctypes.c_void_p()
        sizes = ctypes.c_uint64(rows), ctypes.c_uint64(cols), ctypes.c_int64(rows)
        self.must("cublasLtMatrixLayoutCreate", ctypes.byref(made), R_16BF, *sizes)
        return made

    def ids(self):
        found, count = (ctypes.c_int * 200)(), ctypes.c_int()
        types = (COMPUTE_32F, R_32F, R_16BF, R_16BF, R_16BF, R_16BF)
        self.must("cublasLtMatmulAlgoGetIds", self.handle, *types, 200, found, ctypes.byref(count))
        return list(found[: count.value])

    def capability(self, algo, which):
        values, written = (ctypes.c_uint32 * 1024)(), ctypes.c_size_t()
        size = ctypes.c_size_t(ctypes.sizeof(values))
        status = self.call("cublasLtMatmulAlgoCapGetAttribute", algo, which, values, size, ctypes.byref(written))
        return list(values[: written.value // 4]) if status == 0 else []

    def start(self, number):
        algo = (ctypes.c_uint64 * 8)()
        types = (COMPUTE_32F, R_32F, R_16BF, R_16BF, R_16BF, R_16BF)
        return algo if self.call("cublasLtMatmulAlgoInit", self.handle, *types, number, algo) == 0 else None

    def algorithms(self, number):
        """Every config of the algorithm that fits the product, as (description, algorithm)."""
        first = self.start(number)
        if first is None:
            return
        tiles, stages = self.capability(first, CAP_TILES) or [0], self.capability(first, CAP_STAGES) or [0]
        swizzles = range(2) if self.capability(first, CAP_SWIZZLING) == [1] else [0]
        for tile, stage, swizzle in itertools.product(tiles, stages, swizzles):
            algo = self.start(number)
            for field, value in ((CONFIG_TILE, tile), (CONFIG_STAGES, stage), (CONFIG_SWIZZLING, swizzle)):
                held = ctypes.c_uint32(value)
                self.call("cublasLtMatmulAlgoConfigSetAttribute", algo, field, ctypes.byref(held), ctypes.c_size_t(4))
            result = (ctypes.c_uint64 * 16)()
            a, b, c = self.layouts
            if self.call("cublasLtMatmulAlgoCheck", self.handle, self.desc, a, b, c, c, algo, result) == 0:
                yield {"algorithm": number, "tile": tile, "stages": stage, "swizzle": swizzle}, algo

    def run(self, algo):
        stream = ctypes.c_void_p(torch.cuda.current_stream().cuda_stream)
        a, b, c = (ctypes.c_void_p(t.data_ptr()) for t in self.tensors)
        la, lb, lc = self.layouts
        return self.call(
            "cublasLtMatmul", self.handle, self.desc, ctypes.byref(self.one), a, la, b, lb, ctypes.byref(self.zero), c, lc, c, lc,
            algo, ctypes.c_void_p(self.workspace.data_ptr()), ctypes.c_size_t(self.workspace.numel()), stream,
        )  # fmt: skip


def kernel_of(run):
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        run()
        torch.cuda.synchronize()
    return next((e.name for e in profile.events() if e.device_type == torch.autograd.DeviceType.CUDA), "")


def best_of_family(lt, flush):
    """The quickest algorithm of mma.sync: description with the kernel's name, how to run it."""
    timed = []
    for number in lt.ids():
        configs = [(what, algo) for what, algo in lt.algorithms(number) if lt.run(algo) == 0]
        torch.cuda.synchronize()
        if not configs or not any(part in kernel_of(lambda: lt.run(configs[0][1])) for part in MMA_SYNC):
            continue
        for what, algo in configs:
            us = launch.median(launch.times(lambda: lt.run(algo), flush, ROUGH_LAUNCHES))
            timed.append((us, what, algo))
    if not timed:
        raise RuntimeError("cublasLt has no algorithm of mma.sync for this product")
    # The quickest few again: three launches rank them roughly.
    few = sorted(timed, key=lambda t: t[0])[:5]
    us, what, algo = min(((launch.median(launch.times(lambda: lt.run(a), flush, 10)), w, a) for _, w, a in few), key=lambda t: t[0])
    return what | {"kernel": kernel_of(lambda: lt.run(algo)), "configs": len(timed)}, lambda: lt.run(algo)


def measure(shape, emitted, flush, launches):
    m, n, k = shape
    torch.manual_seed(1)
    a = torch.randn(m, k, device="cuda", dtype=torch.bfloat16)
    b = torch.randn(n, k, device="cuda", dtype=torch.bfloat16)
    c, theirs = torch.zeros(m, n, device="cuda", dtype=torch.bfloat16), torch.zeros(m, n, device="cuda", dtype=torch.bfloat16)
    what, peer = best_of_family(Lt(a, b, theirs), flush)
    hopper = launch.median(launch.times(lambda: torch.mm(a, b.t(), out=c), flush, launches))
    rows = []
    for settings, kernel in launch.working(shape, emitted, rows):
        config = kernel["config"]
        run = gemm.prepared(kernel, a, b, c)
        c.fill_(float("nan"))
        for _ in range(3):
            run()
            peer()
        torch.cuda.synchronize()
        difference = 1 - 2 * (c.double() * theirs.double()).sum().item() / ((c.double() ** 2).sum() + (theirs.double() ** 2).sum()).item()
        us = launch.times(run, flush, launches)
        family = launch.median(launch.times(peer, flush, launches))
        us = launch.median(us + launch.times(run, flush, launches))
        rate = lambda us: round(2 * m * n * k / us / 1e6, 1)
        row = {
            "m": m,
            "n": n,
            "k": k,
            "settings": settings,
            "config": config,
            "registers": run.registers,
            "us": round(us, 2),
            "tflop_per_s": rate(us),
            "cublas_mma_sync": what,
            "cublas_mma_sync_us": round(family, 2),
            "cublas_mma_sync_tflop_per_s": rate(family),
            "cublas_us": round(hopper, 2),
            "cublas_tflop_per_s": rate(hopper),
            "of_cublas_mma_sync": round(family / us, 3),
            "of_cublas": round(hopper / us, 3),
            "calc_diff_to_cublas": difference,
        }
        rows.append(row)
        wrong = not difference < 1e-5
        brief = "/".join(str(int(config[f])) for f in ("bm", "bn", "bk", "stages", "threads"))
        print(
            f"{m}x{n}x{k} {brief:20} {us:9.2f} us {row['tflop_per_s']:6.1f} TF  mma.sync {row['cublas_mma_sync_tflop_per_s']:6.1f} TF "
            f"{row['of_cublas_mma_sync']:.3f}  wgmma {row['cublas_tflop_per_s']:6.1f} TF {row['of_cublas']:.3f}  {what['kernel'][:60]}"
            + ("  WRONG" if wrong else ""),
            flush=True,
        )
        if wrong:
            row["message"] = "the results differ"
    return rows


def emit(m, n, k):
    return {"kernel": "gemm", "target": "sm_80", "dims": {"m": m, "b0": n, "b1": k}}


def main():
    what = (
        "bf16 products through mma.sync (target sm_80), C = A B^T, beside the quickest of cuBLAS's kernels of that instruction "
        "family (every algorithm, tile, stage count and swizzle of cublasLt) and beside torch.mm (wgmma)"
    )
    return launch.compare_shapes(__doc__, SHAPES, emit, measure, what)


if __name__ == "__main__":
    sys.exit(main())
