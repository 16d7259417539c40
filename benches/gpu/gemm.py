#!/usr/bin/env python3
"""Times `gemm` in bf16 beside cuBLAS (torch.mm) on the same tensors in one process.

    python3 benches/gpu/gemm.py [--zellige PATH] [--target sm_90a|sm_80] [--shape MxNxK]... [--set name=value,..]... [--save FILE]

C = A B^T, the weight B as [N, K]. Without `--shape`, the shapes are those of ANCHORS below and the products of DeepSeek-V4's
layers with 64, 128, 4096 and 8192 rows. Each runs with the config that the library chooses for it, and with each `--set`,
whose fields change that one; `--configs FILE` gives further ones by shape (`{"MxNxK": ["name=value,..", ..]}`). Other layouts:
`--set a_transposed=1`, `--set b_transposed=1`.

CUDA events around one launch, 256 MB written before each (cold L2 cache); for each config 30 launches of ours, 30 of cuBLAS,
30 of ours; medians.
"""

import argparse
import json
import math
import pathlib
import sys

import torch

import launch

ANCHORS = [
    (8192, 8192, 8192),
    (4096, 4096, 4096),
    (4096, 7168, 2048),
    (4096, 4096, 7168),
    (4096, 7168, 16384),
    (128, 7168, 2048),
    (64, 2112, 7168),
    (4096, 24, 28672),
]
# N x K of the products of a layer, V4-Pro and V4-Flash: mHC mix, wq_a with wkv, wq_b, compressors, the indexer's wq_b and
# weights, wo_b, router, an expert's two, a group of wo_a; and the further ones that DeepGEMM tests.
LAYERS = [
    (24, 28672),
    (24, 16384),
    (2048, 7168),
    (1536, 4096),
    (65536, 1536),
    (32768, 1024),
    (2048, 4096),
    (512, 7168),
    (512, 4096),
    (1024, 7168),
    (1024, 4096),
    (8192, 1536),
    (8192, 1024),
    (64, 7168),
    (64, 4096),
    (7168, 16384),
    (4096, 8192),
    (384, 7168),
    (256, 4096),
    (6144, 7168),
    (7168, 3072),
    (4096, 4096),
    (4096, 2048),
    (2112, 7168),
    (576, 7168),
    (24576, 1536),
    (32768, 512),
    (4096, 7168),
    (7168, 2048),
]
# The head over the vocabulary, for as many rows as fit the memory of 80 GB with ease.
HEADS = [(129280, 7168), (129280, 4096)]
ROWS = [64, 128, 4096, 8192]


def all_shapes():
    shapes = [(m, n, k) for m in ROWS for n, k in LAYERS] + [(m, n, k) for m in ROWS[:2] for n, k in HEADS]
    return list(dict.fromkeys(ANCHORS + shapes))


def prepared(kernel, a, b, c):
    """The kernel on tensors that lie as its config wants."""
    config, (m, n) = kernel["config"], c.shape
    dims = {"a0": a.shape[0], "a1": a.shape[1], "m": m, "n": n}
    grid = (math.ceil(n / config["bn"]), math.ceil(m / config["bm"]))
    return launch.Kernel(kernel, {"a": a, "b": b, "c": c}, {"alpha": 1.0}, dims, grid)


def name_of(settings):
    return ",".join(settings) or "chosen"


def measure(shape, emitted, flush, launches):
    """Rows of one shape, one for each config that works."""
    m, n, k = shape
    torch.manual_seed(1)
    a = torch.randn(m, k, device="cuda", dtype=torch.bfloat16)
    b = torch.randn(n, k, device="cuda", dtype=torch.bfloat16)
    c = torch.zeros(m, n, device="cuda", dtype=torch.bfloat16)
    want = torch.zeros_like(c)
    rows = []
    for settings, kernel in launch.working(shape, emitted, rows):
        config = kernel["config"]
        ours_a = a.t().contiguous() if config["a_transposed"] else a
        ours_b = b.t().contiguous() if config["b_transposed"] else b
        left = ours_a.t() if config["a_transposed"] else ours_a
        right = ours_b if config["b_transposed"] else ours_b.t()
        run = prepared(kernel, ours_a, ours_b, c)
        peer = lambda: torch.mm(left, right, out=want)
        c.fill_(float("nan"))
        for _ in range(3):
            run()
            peer()
        torch.cuda.synchronize()
        x, y = c.flatten(), want.flatten()
        # Sums of up to 2^28 products: parts of them in f32, these in f64.
        parts = range(0, x.numel(), 1 << 24)
        dot = lambda u, v: sum((u[i : i + (1 << 24)].double() * v[i : i + (1 << 24)].double()).sum().item() for i in parts)
        difference = 1 - 2 * dot(x, y) / (dot(x, x) + dot(y, y))
        us = launch.times(run, flush, launches)
        theirs = launch.median(launch.times(peer, flush, launches))
        us = launch.median(us + launch.times(run, flush, launches))
        rate = lambda us: round(2 * m * n * k / us / 1e6, 1)
        row = {
            "m": m,
            "n": n,
            "k": k,
            "settings": settings,
            "config": config,
            "cluster": run.cluster,
            "blocks": run.grid[0] * run.grid[1] * run.grid[2],
            "registers": run.registers,
            "local_bytes": run.local_bytes,
            "shared_bytes": run.shared,
            "us": round(us, 2),
            "tflop_per_s": rate(us),
            "gb_per_s": round(2 * (m * k + n * k + m * n) / us / 1e3, 1),
            "cublas_us": round(theirs, 2),
            "cublas_tflop_per_s": rate(theirs),
            "of_cublas": round(theirs / us, 3),
            "calc_diff_to_cublas": difference,
        }
        rows.append(row)
        wrong = not difference < 1e-5
        brief = "/".join(str(int(config[f])) for f in ("bm", "bn", "bk", "stages", "threads", "runs", "spread"))
        print(
            f"{m}x{n}x{k} {brief:24} {us:9.2f} us {row['tflop_per_s']:6.1f} TF  cuBLAS {theirs:9.2f} us  {row['of_cublas']:.3f}"
            + ("  WRONG" if wrong else ""),
            flush=True,
        )
        if wrong:
            row["message"] = "the results differ"
    return rows


def summary(rows):
    """The best config of each shape, and the geometric mean by the number of rows."""
    best = {}
    for row in rows:
        if "message" not in row:
            shape = f"{row['m']}x{row['n']}x{row['k']}"
            if shape not in best or row["of_cublas"] > best[shape]:
                best[shape] = row["of_cublas"]
    means = {}
    for few, some in (("m<=128", [v for s, v in best.items() if launch.parse_shape(s)[0] <= 128]), ("m>128", [v for s, v in best.items() if launch.parse_shape(s)[0] > 128])):
        if some:
            means[few] = {"geometric_mean": round(math.exp(sum(map(math.log, some)) / len(some)), 3), "least": min(some), "shapes": len(some)}
    return best, means


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--zellige", default="target/release/zellige")
    parser.add_argument("--target", default="sm_90a")
    parser.add_argument("--shape", dest="shapes", action="append", type=launch.parse_shape)
    parser.add_argument("--set", dest="sets", action="append", default=[])
    parser.add_argument("--configs", type=pathlib.Path)
    parser.add_argument("--launches", type=int, default=launch.LAUNCHES)
    parser.add_argument("--save", type=pathlib.Path)
    args = parser.parse_args()
    by_shape = json.loads(args.configs.read_text()) if args.configs else {}
    shapes = args.shapes or ([launch.parse_shape(s) for s in by_shape] if by_shape else all_shapes())
    wanted = {}
    for m, n, k in shapes:
        for settings in dict.fromkeys(["", *args.sets, *by_shape.get(f"{m}x{n}x{k}", [])]):
            emit = {"zellige": args.zellige, "kernel": "gemm", "target": args.target, "dims": {"m": m, "b0": n, "b1": k}}
            wanted[(m, n, k), settings] = emit | {"settings": [s for s in settings.split(",") if s]}
    flush = launch.flush_buffer()
    copy = launch.copy_gb_per_s(flush)
    emitted = launch.emit_all(wanted)
    rows = []
    for shape in shapes:
        rows += measure(shape, {s: e for (of, s), e in emitted.items() if of == shape}, flush, args.launches)
        if args.save:
            best, means = summary(rows)
            document = launch.document(
                "bf16 products with fp32 accumulation, C = A B^T, beside torch.mm (cuBLAS) on the same tensors in the same process",
                launch.method(args.launches) + "; `best_of_cublas` is cuBLAS's time over that of our best config",
                target=args.target,
                copy_gb_per_s=copy,
                means=means,
                best_of_cublas=best,
                rows=rows,
            )
            args.save.write_text(json.dumps(document, indent=1) + "\n")
    best, means = summary(rows)
    print(means)
    return 1 if any("message" in row for row in rows) else 0


if __name__ == "__main__":
    sys.exit(main())
