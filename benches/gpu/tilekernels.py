#!/usr/bin/env python3
"""Times kernels of the library beside DeepSeek's TileKernels on the same tensors in one process.

    python3 benches/gpu/tilekernels.py [--zellige PATH] [--only NAME]... [--save FILE]

Needs a GPU, PyTorch built for it, the packages `tile-kernels` and `tilelang` with CUDA's compiler, and a built `zellige`.
TileKernels' kernels are first compiled, several at a time, into TileLang's cache on disk (`--compile` does only that).

CUDA events around one launch, 512 MB written before each (cold L2 cache, and time for the host to get ahead); 30 launches of
ours, 30 of theirs, 30 of ours; medians. A call of theirs is the public function where there is one; it allocates its results
first, which takes the device no time.
"""

import argparse
import concurrent.futures
import json
import os
import pathlib
import subprocess
import sys
import time

import torch

import launch

CASES = {}


def case(f):
    CASES[f.__name__] = f
    return f


def normal(*shape, dtype=torch.bfloat16, scale=1.0):
    return (torch.randn(*shape, device="cuda") * scale).to(dtype)


def uniform(*shape):
    return torch.rand(*shape, device="cuda")


def empty(*shape, dtype=torch.bfloat16):
    return torch.empty(*shape, device="cuda", dtype=dtype)


E4M3 = torch.float8_e4m3fn
F32, I32, I64 = torch.float32, torch.int32, torch.int64


def routing(tokens, experts, k):
    """Ids of experts, no two alike in a row."""
    return torch.stack([torch.randperm(experts, device="cuda")[:k] for _ in range(64)]).repeat(tokens // 64 + 1, 1)[:tokens].contiguous()


def mapping(tokens, experts, k, alignment=128):
    """Rows of a buffer sorted by expert, each expert's padded: expert, token and pair of each row (-1 for padding), row of each
    pair."""
    ids = routing(tokens, experts, k)
    flat = ids.flatten()
    counts = torch.bincount(flat, minlength=experts)
    padded = (counts + alignment - 1) // alignment * alignment
    positions = (tokens * k + (alignment - 1) * experts) // alignment * alignment
    pairs = torch.argsort(flat, stable=True)
    first, start = torch.cumsum(counts, 0) - counts, torch.cumsum(padded, 0) - padded
    sorted_ids = flat[pairs]
    rows = start[sorted_ids] + torch.arange(len(flat), device="cuda") - first[sorted_ids]
    expert, pair = (torch.full((positions,), -1, device="cuda", dtype=I64) for _ in range(2))
    expert[rows], pair[rows] = sorted_ids, pairs
    row_of = torch.empty_like(flat)
    row_of[pairs] = rows
    token = torch.where(pair >= 0, pair // k, pair)
    return ids, positions, [x.to(I32) for x in (expert, token, pair, row_of.view(tokens, k))]


# Each case returns what `measure` takes: our kernel with its dims, config, tensors and scalars; their call; and which of our
# tensors is which of their results, with the rows that count.


@case
def expand_to_fused():
    import tile_kernels

    tokens, width, k, experts = 4096, 7168, 6, 384
    x = normal(tokens, width)
    _, positions, maps = mapping(tokens, experts, k)
    pos_to_expert, pos_to_token, _, token_topk_to_pos = maps[:4]
    y = empty(positions, width)
    return dict(
        kernel="expand_to_fused",
        dims=dict(tokens=tokens, width=width, positions=positions),
        tensors=dict(x=x, pos_to_token=pos_to_token, y=y),
        theirs=lambda: [tile_kernels.moe.expand_to_fused(x, token_topk_to_pos, pos_to_expert)],
        ours=[y],
        rows=[pos_to_token >= 0],
        bytes=2 * width * (tokens + positions),
    )


@case
def reduce_fused():
    import tile_kernels

    tokens, width, k, experts = 4096, 7168, 6, 384
    _, positions, maps = mapping(tokens, experts, k)
    y, weights, out = normal(positions, width), uniform(tokens, k), empty(tokens, width)
    none = empty(0, dtype=F32)
    pos = maps[3]
    return dict(
        kernel="reduce_fused",
        dims=dict(positions=positions, width=width, weight_rows=tokens, weight_cols=k, scale_rows=0, tokens=tokens, k=k, addend_rows=0, addend_cols=0),
        tensors=dict(y=y, weights=weights, row_scales=none, token_topk_to_pos=pos, addend=empty(0), out=out),
        scalars=dict(out_scale=1.0),
        theirs=lambda: [tile_kernels.moe.reduce_fused(y, weights, pos)],
        ours=[out],
        bytes=2 * width * tokens * (k + 1),
    )


def cast(kernel, theirs, settings, transposed=False):
    m, k = 8192, 7168
    x = normal(m, k)
    codes = empty(*((k, m) if transposed else (m, k)), dtype=E4M3)
    sf = empty(*((m, k // 128) if kernel == "per_token_cast" else (m // 128, k)), dtype=F32)
    return dict(
        kernel=kernel,
        dims=dict(m=m, k=k, sf_rows=sf.shape[0], sf_cols=sf.shape[1]),
        settings=settings,
        tensors=dict(x=x, codes=codes, sf=sf),
        theirs=lambda: theirs(x),
        ours=[codes, sf],
        bytes=3 * m * k,
    )


@case
def per_token_cast():
    import tile_kernels

    return cast("per_token_cast", lambda x: tile_kernels.quant.per_token_cast(x, "e4m3", 128, round_sf=True), ["ue8m0=true"])


@case
def per_channel_cast():
    import tile_kernels

    return cast("per_channel_cast", lambda x: tile_kernels.quant.per_channel_cast(x, "e4m3", 128, round_sf=True), ["ue8m0=true"])


@case
def per_channel_cast_and_transpose():
    import tile_kernels

    theirs = lambda x: tile_kernels.quant.per_channel_cast_and_transpose(x, "e4m3", 128, round_sf=True)
    return cast("per_channel_cast_and_transpose", theirs, ["ue8m0=true"], transposed=True)


@case
def swiglu_forward_and_per_token_cast():
    import tile_kernels

    tokens, inner, k, experts = 4096, 3072, 6, 384
    _, positions, maps = mapping(tokens, experts, k)
    pos_to_expert, _, pos_to_pair = maps[:3]
    x, weights = normal(positions, 2 * inner), uniform(tokens, k)
    codes, sf, clamped = empty(positions, inner, dtype=E4M3), empty(positions, inner // 128, dtype=F32), torch.zeros(3, device="cuda", dtype=I64)
    theirs = lambda: tile_kernels.quant.swiglu_forward_and_per_token_cast(
        x, "e4m3", 128, pos_to_pair, weights, pos_to_expert, round_sf=True, swiglu_clamp_value=10.0
    )
    live = pos_to_expert >= 0
    return dict(
        kernel="swiglu_forward_and_per_token_cast",
        dims=dict(m=positions, two_inner=2 * inner, experts_m=positions, pairs_m=positions, tokens=tokens, k=k, inner=inner, sf_rows=positions, sf_cols=inner // 128),
        settings=["ue8m0=true"],
        tensors=dict(x=x, pos_to_expert=pos_to_expert, pos_to_token_topk=pos_to_pair, weights=weights, clamped=clamped, codes=codes, sf=sf),
        scalars=dict(limit=10.0, amax_floor=1e-4),
        theirs=theirs,
        ours=[codes, sf],
        rows=[live, live],
        bytes=5 * inner * tokens * k,
    )


@case
def topk_gate():
    """Ours also scores the logits and returns weights."""
    import tile_kernels

    tokens, experts, k = 8192, 256, 8
    logits, bias = normal(tokens, experts, dtype=F32), torch.zeros(experts, device="cuda")
    ids, weights = empty(tokens, k, dtype=I64), empty(tokens, k, dtype=F32)
    return dict(
        kernel="gate",
        dims=dict(tokens=tokens, experts=experts, k=k),
        tensors=dict(logits=logits, bias=bias, ids=ids, weights=weights),
        scalars=dict(route_scale=1.0),
        theirs=lambda: [tile_kernels.moe.topk_gate(logits, k)],
        ours=[ids],
        bytes=4 * tokens * experts + 12 * tokens * k,
    )


@case
def top2_sum_gate():
    import tile_kernels

    tokens, experts, k = 8192, 384, 6
    logits, bias = normal(tokens, experts, dtype=F32), normal(experts, dtype=F32, scale=0.1)
    ids, weights, logical = empty(tokens, k, dtype=I64), empty(tokens, k, dtype=F32), empty(tokens, k, dtype=I64)
    none = {name: empty(0, dtype=I32) for name in ("live", "fixed", "fixed_ids", "to_physical", "replica_count")}
    theirs = lambda: tile_kernels.moe.top2_sum_gate(
        logits, bias, k, 0, 0, False, 0, 2.5, 0, 1, 0, 1, "sqrtsoftplus", unmapped_topk_idx=logical
    )
    return dict(
        kernel="top2_sum_gate",
        dims=dict(tokens=tokens, experts=experts, live_tokens=0, fixed_tokens=0, fixed_rows=0, fixed_cols=0, all_experts=0, columns=0, counted_experts=0, slots=k, k=k),
        tensors=dict(logits=logits, bias=bias, ids=ids, weights=weights, logical=logical, **none),
        scalars=dict(route_scale=2.5, ep_rank=0, tp_rank=0),
        theirs=theirs,
        ours=[ids, weights],
        bytes=4 * tokens * experts + 20 * tokens * k,
    )


@case
def get_fused_mapping():
    import tile_kernels

    tokens, experts, k = 8192, 384, 6
    ids, positions, _ = mapping(tokens, experts, k)
    out = {name: empty(positions, dtype=I32) for name in ("pos_to_expert", "pos_to_token", "pos_to_token_topk")}
    out["token_topk_to_pos"] = empty(tokens, k, dtype=I32)
    out |= {name: empty(experts, dtype=I32) for name in ("expert_start", "expert_end", "tokens_per_expert")}
    return dict(
        kernel="get_fused_mapping",
        dims=dict(tokens=tokens, k=k, positions=positions, experts=experts),
        tensors=dict(ids=ids, **out),
        theirs=lambda: tile_kernels.moe.get_fused_mapping(ids, experts, positions, 128)[:7],
        ours=list(out.values()),
        bytes=12 * tokens * k + 12 * positions,
    )


@case
def group_count():
    import tile_kernels

    tokens, groups, k = 36262, 384, 6
    ids = routing(tokens, groups, k)
    counts, work = empty(groups, dtype=I32), torch.zeros(groups + 1, device="cuda", dtype=I32)
    return dict(
        kernel="group_count",
        dims=dict(tokens=tokens, k=k, groups=groups, slots=groups + 1),
        tensors=dict(ids=ids, counts=counts, work=work),
        theirs=lambda: [tile_kernels.moe.group_count(ids, groups)],
        ours=[counts],
        bytes=8 * tokens * k,
    )


@case
def aux_fi():
    import tile_kernels

    tokens, experts, k = 36262, 384, 6
    ids = routing(tokens, experts, k)
    fi, work = empty(experts, dtype=F32), torch.zeros(experts + 1, device="cuda", dtype=I32)
    return dict(
        kernel="aux_fi",
        dims=dict(tokens=tokens, k=k, experts=experts, slots=experts + 1),
        tensors=dict(ids=ids, fi=fi, work=work),
        scalars=dict(aux_top_k=k),
        theirs=lambda: [tile_kernels.moe.aux_fi(ids, experts, k)],
        ours=[fi],
        bytes=8 * tokens * k,
    )


@case
def normalize_weight():
    import tile_kernels

    tokens, k = 8192, 6
    weights = uniform(tokens, k)
    sums, normalized = empty(tokens, dtype=F32), empty(tokens, k, dtype=F32)
    return dict(
        kernel="normalize_weight",
        dims=dict(tokens=tokens, k=k),
        tensors=dict(weights=weights, sums=sums, normalized=normalized),
        theirs=lambda: tile_kernels.moe.normalize_weight(weights),
        ours=[sums, normalized],
        bytes=4 * tokens * (2 * k + 1),
    )


@case
def batched_transpose():
    import tile_kernels

    batch, m, n = 8, 4096, 7168
    x, y = normal(batch, m, n), empty(batch, n, m)
    return dict(
        kernel="batched_transpose",
        dims=dict(batch=batch, m=m, n=n),
        tensors=dict(x=x, y=y),
        theirs=lambda: [tile_kernels.transpose.batched_transpose(x)],
        ours=[y],
        bytes=4 * batch * m * n,
    )


TOKENS, STREAMS, HIDDEN = 4096, 4, 7168


@case
def mhc_post():
    from tile_kernels.mhc.post_kernel import mhc_post_fwd

    t, n, d = TOKENS, STREAMS, HIDDEN
    f, x, post, comb, y = normal(t, d), normal(t, n, d), uniform(t, n), uniform(t, n, n), empty(t, n, d)
    return dict(
        kernel="mhc_post",
        dims=dict(tokens=t, n=n, d=d),
        tensors=dict(f=f, x=x, post=post, comb=comb, y=y),
        theirs=lambda: [mhc_post_fwd(f[None], x[None], post[None, :, :, None], comb[None])[0]],
        ours=[y],
        bytes=2 * t * d * (2 * n + 1),
    )


@case
def mhc_apply():
    from tile_kernels.modeling.mhc.ops.pre_apply_mix import mhc_pre_apply_mix

    t, n, d = TOKENS, STREAMS, HIDDEN
    x, pre, u = normal(t, n, d), uniform(t, n), empty(t, d)
    return dict(
        kernel="mhc_apply",
        dims=dict(tokens=t, n=n, d=d),
        tensors=dict(x=x, pre=pre, u=u),
        theirs=lambda: [mhc_pre_apply_mix(x, pre[:, :, None])],
        ours=[u],
        bytes=2 * t * d * (n + 1),
    )


@case
def mhc_sinkhorn():
    from tile_kernels.modeling.mhc.ops.sinkhorn import sinkhorn_normalize

    t, n = 8192, STREAMS
    logits, comb = normal(t, n, n, dtype=F32), empty(t, n, n, dtype=F32)
    return dict(
        kernel="mhc_sinkhorn",
        dims=dict(tokens=t, n=n),
        tensors=dict(logits=logits, comb=comb),
        scalars=dict(eps=1e-6),
        theirs=lambda: [sinkhorn_normalize(logits, 20, 1e-6)],
        ours=[comb],
        bytes=8 * t * n * n,
    )


@case
def mhc_pre_big_fuse():
    """The fused kernel behind the projection, on one slab of its results."""
    from tile_kernels.mhc.pre_big_fuse_kernel import _mhc_pre_big_fuse

    t, n, d = TOKENS, STREAMS, HIDDEN
    outputs = n * (n + 2)
    x, raw, squares = normal(t, n, d), normal(1, t, outputs, dtype=F32, scale=100.0), uniform(1, t) * n * d
    scale, base = uniform(3), normal(outputs, dtype=F32)
    u, post, comb = empty(t, d), empty(t, n, dtype=F32), empty(t, n, n, dtype=F32)
    their_u, their_post, their_comb = empty(t, d), empty(t, n, dtype=F32), empty(t, n * n, dtype=F32)
    kernel = _mhc_pre_big_fuse(d, 1e-6, 1e-6, 1e-6, 2.0, 20, n_splits=1, mhc_mult=n)

    def theirs():
        kernel(raw, squares, scale, base, x, their_post, their_comb, their_u)
        return [their_u, their_post, their_comb.view(t, n, n)]

    return dict(
        kernel="mhc_pre_big_fuse",
        dims=dict(tokens=t, n=n, d=d, slabs=1, outputs=outputs),
        tensors=dict(x=x, raw=raw, square_sum=squares, scale=scale, base=base, u=u, post=post, comb=comb),
        scalars=dict(eps=1e-6, post_multiplier=2.0),
        theirs=theirs,
        ours=[u, post, comb],
        bytes=2 * t * d * (n + 1),
    )


@case
def mhc_recompute():
    from tile_kernels.mhc.multilayer_recompute_kernel import mhc_multilayer_recompute

    t, n, d, layers = 8192, STREAMS, 4096, 10
    x, f = normal(t, n, d), normal(layers, t, d)
    pre, post, comb = uniform(layers, t, n), uniform(layers, t, n), uniform(layers, t, n, n) / n
    u, states = empty(layers, t, d), empty(layers, t, n, d)
    their_u, their_states = torch.empty_like(u), torch.empty_like(states)
    # They take lists of tensors with a batch in front.
    lists = [[a[l][None] for l in range(layers)] for a in (pre[..., None], f, post[..., None], comb, their_u, their_states)]

    def theirs():
        mhc_multilayer_recompute(x[None], *lists)
        return [their_u, their_states]

    return dict(
        kernel="mhc_recompute",
        dims=dict(tokens=t, n=n, d=d, layers=layers, steps=layers),
        tensors=dict(x=x, pre=pre, f=f, post=post, comb=comb, u=u, states=states),
        theirs=theirs,
        ours=[u, states],
        bytes=2 * t * d * (n + layers * (2 + n)),
    )


def compare(ours, theirs, rows):
    """The largest difference, and the part of the elements that differ."""
    if ours.shape != theirs.shape:
        theirs = theirs.reshape(ours.shape)
    x, y = ours.float(), theirs.float()
    if rows is not None:
        x, y = x[rows], y[rows]
    return {"largest_difference": (x - y).abs().max().item(), "differ": ((x != y).sum() / x.numel()).item()}


def measure(name, emitted, flush):
    torch.manual_seed(1)
    given = CASES[name]()
    run = launch.Kernel(emitted, given["tensors"], given.get("scalars", {}), given["dims"])
    theirs = given["theirs"]
    results = theirs()
    run()
    torch.cuda.synchronize()
    rows = given.get("rows") or [None] * len(given["ours"])
    differences = [compare(*three) for three in zip(given["ours"], results, rows)]
    for _ in range(3):
        run()
        theirs()
    us = launch.times(run, flush)
    peer = launch.median(launch.times(theirs, flush))
    us = launch.median(us + launch.times(run, flush))
    rate = lambda us: round(given["bytes"] / us / 1e3, 1)
    row = {
        "case": name,
        "kernel": given["kernel"],
        "dims": given["dims"],
        "settings": given.get("settings", []),
        "note": (CASES[name].__doc__ or "").strip(),
        "us": round(us, 2),
        "gb_per_s": rate(us),
        "tilekernels_us": round(peer, 2),
        "tilekernels_gb_per_s": rate(peer),
        "of_tilekernels": round(peer / us, 3),
        "differences": differences,
    }
    worst = max(d["largest_difference"] for d in differences)
    print(f"{name:36} {us:9.2f} us {row['gb_per_s']:7.1f} GB/s  TileKernels {peer:9.2f} us  {row['of_tilekernels']:.3f}  differs by {worst:.3g}", flush=True)
    return row


def find_peer():
    """Lets TileKernels 1.0.0 find a module that TileLang 0.1.15 has under another name."""
    import tilelang.backend.target

    sys.modules.setdefault("tilelang.utils.target", tilelang.backend.target)
    return tilelang.__version__


def warm(names, limit):
    """Compiles some cases' peers in a process of its own; says what went wrong, for each that did not come through."""
    command = [sys.executable, __file__, "--warm", ",".join(names)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=limit)
        out, why = done.stdout, " ".join(done.stderr.strip().splitlines()[-3:])
    except subprocess.TimeoutExpired as late:
        out, why = late.stdout or "", f"TileLang did not compile it in {limit} s"
        out = out.decode() if isinstance(out, bytes) else out
    print(out, end="", flush=True)
    compiled = [line.split(":")[0] for line in out.splitlines() if ": compiled in " in line]
    return {name: why for name in names if name not in compiled}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--zellige", default="target/release/zellige")
    parser.add_argument("--only", action="append")
    parser.add_argument("--warm", help=argparse.SUPPRESS)
    parser.add_argument("--limit", type=float, default=120, help="seconds to compile a kernel of theirs")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--compiled", action="store_true", help="they are compiled already")
    parser.add_argument("--save", type=pathlib.Path)
    args = parser.parse_args()
    if args.warm:
        find_peer()
        for name in args.warm.split(","):
            start = time.time()
            CASES[name]()["theirs"]()
            torch.cuda.synchronize()
            print(f"{name}: compiled in {time.time() - start:.1f} s", flush=True)
        return 0
    names = args.only or list(CASES)
    failed = {}
    if not args.compiled:
        # Each process needs the compiler's packages first.
        groups = max(1, min(len(names), os.cpu_count()))
        with concurrent.futures.ThreadPoolExecutor(groups) as pool:
            for reasons in pool.map(lambda i: warm(names[i::groups], args.limit), range(groups)):
                failed |= reasons
    if args.compile:
        print(failed)
        return 1 if failed else 0
    version = find_peer()
    flush = torch.empty(2 * launch.FLUSH_BYTES, device="cuda", dtype=torch.uint8)
    copy = launch.copy_gb_per_s(flush)
    rows = []

    def attempt(name, f):
        try:
            return f()
        except Exception as error:  # Whatever their compiler or launch raises belongs in the report.
            why = f"{type(error).__name__}: {error}"
            print(name, why, flush=True)
            rows.append({"case": name, "message": why})

    for name, why in failed.items():
        print(name, why, flush=True)
        rows.append({"case": name, "message": why})
    wanted = {}
    for name in names:
        if name in failed:
            continue
        given = attempt(name, CASES[name])
        if given:
            wanted[name] = {
                "zellige": args.zellige,
                "kernel": given["kernel"],
                "dims": given["dims"],
                "settings": given.get("settings", []),
            }
        del given
    emitted = launch.emit_all(wanted)
    for name in wanted:
        if isinstance(emitted[name], RuntimeError):
            rows.append({"case": name, "message": str(emitted[name])})
            print(name, emitted[name], flush=True)
            continue
        row = attempt(name, lambda: measure(name, emitted[name], flush))
        if row:
            rows.append(row)
        if args.save:
            document = launch.document(
                "kernels of the library beside TileKernels on the same tensors in the same process",
                launch.method(flush_bytes=2 * launch.FLUSH_BYTES) + "; a call of theirs allocates its results first",
                packages={"tile-kernels": "1.0.0", "tilelang": version},
                copy_gb_per_s=copy,
                rows=rows,
            )
            args.save.write_text(json.dumps(document, indent=1) + "\n")
    return 1 if any("message" in row for row in rows) else 0


if __name__ == "__main__":
    sys.exit(main())
