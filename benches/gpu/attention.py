#!/usr/bin/env python3
"""Times `flash_attention` beside PyTorch's attention (FlashAttention-2 and cuDNN) on the same tensors in one process.

    python3 benches/gpu/attention.py [--zellige PATH] [--set name=value,..]... [--save FILE]

Needs a GPU, PyTorch built for it, and a built `zellige`. Each `--set` is a config to try beside the kernel's own. CUDA events
around one launch, 256 MB written before each (cold L2 cache); the median of 30 launches before and 30 after those of the
peers, of which each has 30.
"""

import argparse
import json
import pathlib
import sys

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

import launch

# The library's case, and its batch, heads, key heads, length and head dim.
SHAPES = [
    ("s=4096x4096,4096x4096", (4, 32, 32, 4096, 128)),
    ("s=16384x16384", (1, 32, 32, 16384, 128)),
    ("h=16/2 d=128 causal", (1, 16, 2, 2048, 128)),
]
PEERS = {"fa2": SDPBackend.FLASH_ATTENTION, "cudnn": SDPBackend.CUDNN_ATTENTION}


def measure(args, case, shape, flush):
    b, h, hk, s, d = shape
    torch.manual_seed(1)
    q = torch.randn(b * s, h, d, device="cuda", dtype=torch.bfloat16)
    k, v = (torch.randn(b * s, hk, d, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    sink = torch.zeros(1, device="cuda")
    bounds = torch.arange(b + 1, device="cuda", dtype=torch.int32) * s
    o = torch.zeros_like(q)
    lse = torch.zeros(b * s, h, device="cuda")
    tensors = {"q": q, "k": k, "v": v, "sink": sink, "cu_q": bounds, "cu_k": bounds, "o": o, "lse": lse}
    dims = {"tokens": b * s, "kv_tokens": b * s, "sinks": 0, "bounds": b + 1}
    flops = 4 * b * h * d * (s * (s + 1) / 2)
    heads = [x.view(b, s, -1, d).transpose(1, 2) for x in (q, k, v)]

    def peer(backend):
        with sdpa_kernel(backend):
            return F.scaled_dot_product_attention(*heads, is_causal=True, enable_gqa=h != hk)

    ours = {}
    for settings in args.sets:
        emitted = launch.assemble(launch.emit(args.zellige, "flash_attention", case=case, settings=settings))
        bm = next((int(x[3:]) for x in settings if x.startswith("bm=")), 128)
        grid = (-(-s // bm), h, b)
        name = ",".join(settings) or "default"
        ours[name] = launch.Kernel(emitted, tensors, {"max_q": s, "scale": d**-0.5}, dims, grid)
    # The peer that is nearest: what it computes differs by the roundings of bf16 alone.
    want = peer(SDPBackend.FLASH_ATTENTION).transpose(1, 2).reshape(b * s, h, d)
    difference = {}
    for name, kernel in ours.items():
        o.fill_(float("nan"))
        kernel()
        torch.cuda.synchronize()
        difference[name] = (o.float() - want.float()).abs().max().item()
    for _ in range(3):
        for run in [*ours.values(), *(lambda x=x: peer(x) for x in PEERS.values())]:
            run()
    taken = {name: launch.times(run, flush) for name, run in ours.items()}
    peers = {name: launch.times(lambda: peer(backend), flush) for name, backend in PEERS.items()}
    for name, run in ours.items():
        taken[name] += launch.times(run, flush)
    rate = lambda us: flops / us / 1e6
    result = {"case": case, "batch": b, "heads": h, "kv_heads": hk, "length": s, "head_dim": d, "ours": {}, "peers": {}}
    for name, us in peers.items():
        median = launch.median(us)
        result["peers"][name] = {"us": round(median, 2), "tflops": round(rate(median), 1)}
    for name, us in taken.items():
        median = launch.median(us)
        row = {"us": round(median, 2), "tflops": round(rate(median), 1), "difference_from_fa2": difference[name]}
        row |= {"registers": ours[name].registers, "local_bytes": ours[name].local_bytes}
        for other, theirs in result["peers"].items():
            row[f"of_{other}"] = round(theirs["us"] / median, 3)
        result["ours"][name] = row
        print(case, name, row, flush=True)
    print(case, result["peers"], flush=True)
    return result


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--zellige", default="target/release/zellige")
    parser.add_argument("--set", dest="sets", action="append", default=[], type=lambda s: s.split(","))
    parser.add_argument("--only", default="", help="cases whose name contains this")
    parser.add_argument("--save", type=pathlib.Path)
    args = parser.parse_args()
    args.sets.insert(0, [])
    torch.zeros(1, device="cuda")
    flush = launch.flush_buffer()
    results, failed = [], False
    for case, shape in SHAPES:
        if args.only in case:
            try:
                results.append(measure(args, case, shape, flush))
            except RuntimeError as error:
                failed = True
                print(case, error, flush=True)
    document = launch.document(
        "causal attention in bf16, forward, beside torch.nn.functional.scaled_dot_product_attention on the same tensors "
        "in the same process",
        launch.method(),
        results=results,
    )
    if args.save:
        args.save.write_text(json.dumps(document, indent=1) + "\n")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
