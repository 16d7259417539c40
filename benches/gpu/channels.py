#!/usr/bin/env python3
"""Times `rope` beside a kernel that does no more than change the sign of the same channels in place.

    python3 benches/gpu/channels.py [--zellige PATH] [--save FILE]

`rope` touches the last 64 of 512 channels of each head: 128 bytes of each kilobyte. Memory serves such rows slower than it
serves a copy, so the peer is a kernel of Triton over the same places, the quickest of several tiles, and the same kernel over as
many bytes in one piece. Both change a sign, which needs no table.
"""

import argparse
import itertools
import json
import math
import pathlib

import torch
import triton
import triton.language as tl

import launch

TOKENS, HEADS, DIM, PAIRS, CONTEXT = 4096, 64, 512, 32, 65536
# A block's share, as the library chooses it for so many heads.
CONFIG = {"tokens": 1, "heads": 64}


@triton.jit
def negate(x, stride, first, ROWS: tl.constexpr, COLS: tl.constexpr):
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    place = x + rows[:, None] * stride + first + tl.arange(0, COLS)[None, :]
    tl.store(place, -tl.load(place))


def quickest(x, stride, first, flush, launches):
    """Microseconds of the quickest tile."""
    best = None
    for rows, warps in itertools.product((32, 64, 128, 256), (2, 4, 8)):
        run = lambda: negate[(TOKENS * HEADS // rows,)](x, stride, first, rows, 2 * PAIRS, num_warps=warps)
        run()
        us = launch.median(launch.times(run, flush, launches))
        best = us if best is None else min(best, us)
    return best


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--zellige", default="target/release/zellige")
    parser.add_argument("--launches", type=int, default=launch.LAUNCHES)
    parser.add_argument("--save", type=pathlib.Path)
    args = parser.parse_args()
    flush = launch.flush_buffer()
    case = f"tokens={TOKENS} heads={HEADS} dim={DIM} context={CONTEXT} forward"
    settings = [f"{name}={value}" for name, value in CONFIG.items()]
    emitted = launch.assemble(launch.emit(args.zellige, "rope", case=case, settings=settings))
    x = torch.randn(TOKENS, HEADS, DIM, device="cuda", dtype=torch.bfloat16)
    angles = torch.rand(CONTEXT, PAIRS, device="cuda")
    tensors = {
        "positions": torch.randint(0, CONTEXT, (TOKENS,), device="cuda", dtype=torch.int32),
        "cos": angles.cos(),
        "sin": angles.sin(),
        "x": x,
    }
    grid = (math.ceil(TOKENS / CONFIG["tokens"]), math.ceil(HEADS / CONFIG["heads"]))
    run = launch.Kernel(emitted, tensors, {}, {"tokens": TOKENS, "table": CONTEXT}, grid)
    run()
    us = launch.times(run, flush, args.launches)
    same = quickest(x, DIM, DIM - 2 * PAIRS, flush, args.launches)
    dense = quickest(torch.randn(TOKENS, HEADS, 2 * PAIRS, device="cuda", dtype=torch.bfloat16), 2 * PAIRS, 0, flush, args.launches)
    us = launch.median(us + launch.times(run, flush, args.launches))
    row = {
        "case": case,
        "us": round(us, 2),
        "same_channels_us": round(same, 2),
        "in_one_piece_us": round(dense, 2),
        "of_same_channels": round(same / us, 3),
        "of_one_piece": round(dense / us, 3),
    }
    print(row)
    if args.save:
        what = "rope in place beside a kernel of Triton that negates the same channels, and as many bytes in one piece"
        document = launch.document(what, launch.method(args.launches), rows=[row])
        args.save.write_text(json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    main()
