#!/usr/bin/env python3
"""Times attention's backward pass beside PyTorch's (FlashAttention-2 and cuDNN) on the same tensors in one process.

    python3 benches/gpu/attention_backward.py [--zellige PATH] [--save FILE]

Ours is `attention_delta`, `attention_dq` and `attention_dkv`, each with the library's config; where keys and key heads give fewer tiles
than there are multiprocessors, the query heads of a key head are dealt to several blocks, and `attention_head_sum` adds their parts. The
time is that of all launches one after another. The peers' is that of torch.autograd.grad, which may launch kernels of its own besides.

CUDA events, 256 MB written before each (cold L2 cache); 30 runs of ours, 30 of each peer, 30 of ours; medians.
"""

import argparse
import json
import pathlib
import sys

import torch
import torch.nn.functional as F
from torch.nn.attention import sdpa_kernel

import launch
from attention import PEERS

# Batch, heads, key heads, length and head dim.
SHAPES = [(4, 32, 32, 4096, 128), (1, 16, 2, 2048, 128), (2, 16, 16, 4096, 64)]


def measure(zellige, shape, flush):
    b, h, hk, s, d = shape
    torch.manual_seed(1)
    q, d_o = (torch.randn(b * s, h, d, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    k, v = (torch.randn(b * s, hk, d, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    heads = [x.view(b, s, -1, d).transpose(1, 2).detach().requires_grad_() for x in (q, k, v)]
    gradient = d_o.view(b, s, h, d).transpose(1, 2)
    packed = lambda x: x.transpose(1, 2).reshape(b * s, -1, d)

    def forward(backend):
        with sdpa_kernel(backend):
            return F.scaled_dot_product_attention(*heads, is_causal=True, enable_gqa=h != hk)

    outputs = {name: forward(backend) for name, backend in PEERS.items()}
    runs = {
        name: (lambda o=o: torch.autograd.grad(o, heads, gradient, retain_graph=True)) for name, o in outputs.items()
    }
    o = packed(outputs["fa2"].detach()).contiguous()
    lse = torch.empty(b * s, h, device="cuda")
    for n in range(b):
        rows = slice(n * s, (n + 1) * s)
        for head in range(h):
            scores = q[rows, head].float() @ k[rows, head // (h // hk)].float().t() * d**-0.5
            mask = torch.ones(s, s, device="cuda", dtype=torch.bool).triu(1)
            lse[rows, head] = scores.masked_fill_(mask, float("-inf")).logsumexp(1)
    sink = torch.empty(0, device="cuda")
    bounds = torch.arange(b + 1, device="cuda", dtype=torch.int32) * s
    delta, total = (torch.empty(h, b * s, device="cuda") for _ in range(2))
    dq, dk, dv = torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)
    tiles = b * -(-s // 128)
    multiprocessors = torch.cuda.get_device_properties(0).multi_processor_count
    shares = [p for p in range(hk, h + 1, hk) if h % p == 0]
    parts_of = next((p for p in shares if p * tiles >= multiprocessors), h)
    in_parts = parts_of > hk
    dk_parts, dv_parts = (torch.empty(b * s, parts_of, d, device="cuda") if in_parts else x for x in (dk, dv))
    tensors = {"q": q, "k": k, "v": v, "o": o, "d_o": d_o, "lse": lse, "sink": sink, "dsink": sink.view(0, 0)}
    tensors |= {"delta": delta, "total": total, "cu_q": bounds, "cu_k": bounds, "dq": dq, "dk": dk_parts, "dv": dv_parts}
    dims = {"tokens": b * s, "kv_tokens": b * s, "heads": h, "kv_heads": hk, "d": d, "bounds": b + 1, "sinks": 0, "tiles": 0, "parts": parts_of}

    def ours(name, grid, more, of, settings, dtypes={}, own={}):
        dims_of = {name: dims[name] for name in of}
        emitted = launch.assemble(launch.emit(zellige, name, dims=dims_of, settings=settings, dtypes=dtypes))
        cfg = emitted["config"]
        return launch.Kernel(emitted, tensors | own, more, dims, grid(cfg)), cfg

    ceil = lambda x, y: -(-x // y)
    of_attention = ["tokens", "kv_tokens", "heads", "kv_heads", "d", "bounds"]
    scale = {"scale": d**-0.5}
    parts = {
        "attention_delta": (lambda c: (ceil(b * s, c["bm"]), h), {}, ["tokens", "heads", "d", "sinks", "tiles"], ["threads=128"]),
        "attention_dq": (lambda c: (ceil(s, c["bm"]), h, b), {"max_q": s} | scale, of_attention, ["causal=true"]),
        "attention_dkv": (
            lambda c: (ceil(s, c["bn"]), parts_of, b), {"max_k": s} | scale, of_attention + ["parts"], ["causal=true"],
            {"dk": "f32", "dv": "f32"} if in_parts else {},
        ),
    }
    kernels = {name: ours(name, *rest) for name, rest in parts.items()}
    if in_parts:
        grid = lambda c: (ceil(b * s, c["rows"]), hk)
        for x, y in ((dk_parts, dk), (dv_parts, dv)):
            sums = ("attention_head_sum", grid, {}, ["kv_tokens", "parts", "kv_heads", "d"], [], {}, {"x": x, "y": y})
            kernels[f"attention_head_sum {len(kernels) - 2}"] = ours(*sums)

    def all_three():
        for kernel, _ in kernels.values():
            kernel()

    for x in (dq, dk, dv):
        x.fill_(float("nan"))
    all_three()
    difference = {}
    for name, mine, theirs in zip(("dq", "dk", "dv"), (dq, dk, dv), runs["fa2"]()):
        x, y = mine.double(), packed(theirs).double()
        difference[name] = float(1 - 2 * (x * y).sum() / (x * x + y * y).sum())
    for run in (all_three, *runs.values()):
        for _ in range(3):
            run()
    us = launch.times(all_three, flush)
    peers = {name: launch.median(launch.times(run, flush)) for name, run in runs.items()}
    us = launch.median(us + launch.times(all_three, flush))
    each = {name: round(launch.median(launch.times(kernel, flush)), 2) for name, (kernel, _) in kernels.items()}
    flops = 10 * b * h * d * (s * (s + 1) / 2)
    row = {"batch": b, "heads": h, "kv_heads": hk, "length": s, "head_dim": d, "us": round(us, 2), "each_us": each}
    row |= {"tflops": round(flops / us / 1e6, 1), "calc_diff_to_fa2": difference}
    row |= {f"{name}_us": round(t, 2) for name, t in peers.items()}
    row |= {f"of_{name}": round(t / us, 3) for name, t in peers.items()}
    row["config"] = {name: cfg for name, (_, cfg) in kernels.items()}
    print({k: v for k, v in row.items() if k != "config"}, flush=True)
    if not max(difference.values()) < 1e-4:
        row["message"] = "the results differ"
    return row


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--zellige", default="target/release/zellige")
    parser.add_argument("--save", type=pathlib.Path)
    args = parser.parse_args()
    torch.zeros(1, device="cuda")
    flush = launch.flush_buffer()
    rows = []
    for shape in SHAPES:
        try:
            rows.append(measure(args.zellige, shape, flush))
        except RuntimeError as error:
            print(shape, error, flush=True)
            rows.append({"shape": shape, "message": str(error)})
    if args.save:
        document = launch.document(
            "causal attention in bf16, backward, beside torch.autograd.grad of scaled_dot_product_attention on the same tensors in the same process",
            "CUDA events around the launches of a backward pass, 256 MB written before each (cold L2 cache); median of 60 of ours, 30 of each peer",
            rows=rows,
        )
        args.save.write_text(json.dumps(document, indent=1) + "\n")
    return 1 if any("message" in row for row in rows) else 0


if __name__ == "__main__":
    sys.exit(main())
