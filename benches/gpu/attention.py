#!/usr/bin/env python3
"""Times `flash_attention` beside PyTorch's attention (FlashAttention-2 and cuDNN) on the same tensors in one process.

    python3 benches/gpu/attention.py [--zellige PATH] [--set name=value,..]... [--save FILE]

Needs a GPU, PyTorch built for it, and a built `zellige` (or `--ptx DIR` with what its `emit --json` printed). Each `--set`
is a config to try beside the kernel's own. CUDA events around one launch, 256 MB written before each (cold L2 cache); the
median of 30 launches before and 30 after those of the peers, of which each has 30.
"""

import argparse
import ctypes
import datetime
import json
import pathlib
import statistics
import subprocess
import sys

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

# The library's case, and its batch, heads, key heads, length and head dim.
SHAPES = [
    ("s=4096x4096,4096x4096", (4, 32, 32, 4096, 128)),
    ("s=16384x16384", (1, 32, 32, 16384, 128)),
    ("h=16/2 d=128 causal", (1, 16, 2, 2048, 128)),
]
PEERS = {"fa2": SDPBackend.FLASH_ATTENTION, "cudnn": SDPBackend.CUDNN_ATTENTION}
LAUNCHES = 30
FLUSH_BYTES = 256 << 20
ELEMENTS = {"f16": 6, "f32": 7, "bf16": 9}
SWIZZLES = {0: 0, 32: 1, 64: 2, 128: 3}

cuda = ctypes.CDLL("libcuda.so.1")


def driver(name, *args):
    status = getattr(cuda, name)(*args)
    if status != 0:
        text = ctypes.c_char_p()
        cuda.cuGetErrorString(status, ctypes.byref(text))
        raise RuntimeError(f"{name}: {text.value.decode() if text.value else status}")


def tensor_map(tensor, spec):
    """The hardware's description of a contiguous tensor in boxes of `spec`."""
    sizes = list(reversed(tensor.shape))
    strides = [s * tensor.element_size() for s in reversed(tensor.stride())][1:]
    rank = len(sizes)
    memory = ctypes.create_string_buffer(256)
    at = (ctypes.addressof(memory) + 63) // 64 * 64
    driver(
        "cuTensorMapEncodeTiled",
        ctypes.c_void_p(at),
        ctypes.c_int(ELEMENTS[spec["dtype"]]),
        ctypes.c_uint32(rank),
        ctypes.c_void_p(tensor.data_ptr()),
        (ctypes.c_uint64 * rank)(*sizes),
        (ctypes.c_uint64 * (rank - 1))(*strides),
        (ctypes.c_uint32 * rank)(*spec["tile"]),
        (ctypes.c_uint32 * rank)(*[1] * rank),
        ctypes.c_int(0),
        ctypes.c_int(SWIZZLES[spec["swizzle"]]),
        ctypes.c_int(3),
        ctypes.c_int(0),
    )
    return memory, at


class Kernel:
    """A compiled kernel as `zellige emit --stage ptx --json` prints it, with its arguments."""

    def __init__(self, emitted, tensors, scalars, dims, grid):
        module, self.function = ctypes.c_void_p(), ctypes.c_void_p()
        driver("cuModuleLoadData", ctypes.byref(module), ctypes.c_char_p(emitted["text"].encode()))
        driver("cuModuleGetFunction", ctypes.byref(self.function), module, emitted["entry"].encode())
        shared = emitted["shared_bytes"]
        driver("cuFuncSetAttribute", self.function, 8, shared)
        self.registers = self.attribute(4)
        self.local_bytes = self.attribute(3)
        self.threads, self.shared = emitted["threads"], shared
        blocks = 1
        for extent in grid:
            blocks *= extent
        if emitted["grid"] == "Persistent":
            grid = (min(blocks, torch.cuda.get_device_properties(0).multi_processor_count), 1, 1)
        self.grid, self.kept, pointers = grid, [], []
        for slot in emitted["params"]:
            (kind, data), = slot.items()
            if kind == "Base":
                value = ctypes.c_uint64(tensors[data["param"]].data_ptr())
            elif kind == "Stride":
                value = ctypes.c_int64(tensors[data["param"]].stride(data["axis"]))
            elif kind == "Dim":
                value = ctypes.c_int32(dims[data["name"]])
            elif kind == "Scalar":
                value = (ctypes.c_int64 if data["dtype"] == "index" else ctypes.c_float)(scalars[data["name"]])
            elif kind == "Counter":
                self.counter = torch.zeros(1, device="cuda", dtype=torch.int32)
                value = ctypes.c_uint64(self.counter.data_ptr())
            else:
                memory, at = tensor_map(tensors[data["param"]], data["map"])
                self.kept.append(memory)
                pointers.append(at)
                continue
            self.kept.append(value)
            pointers.append(ctypes.addressof(value))
        self.params = (ctypes.c_void_p * len(pointers))(*pointers)

    def attribute(self, which):
        value = ctypes.c_int()
        driver("cuFuncGetAttribute", ctypes.byref(value), which, self.function)
        return value.value

    def __call__(self):
        stream = ctypes.c_void_p(torch.cuda.current_stream().cuda_stream)
        driver("cuLaunchKernel", self.function, *self.grid, self.threads, 1, 1, self.shared, stream, self.params, None)


def times(run, flush):
    """Microseconds of each of `LAUNCHES` launches."""
    events = []
    for _ in range(LAUNCHES):
        flush.zero_()
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        run()
        end.record()
        events.append((start, end))
    torch.cuda.synchronize()
    return [1000 * a.elapsed_time(b) for a, b in events]


def emit(args, case, settings):
    command = [args.zellige, "emit", "flash_attention", "--case", case, "--stage", "ptx", "--target", "sm_90a", "--json"]
    for setting in settings:
        command += ["--set", setting]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        raise RuntimeError(done.stderr.strip())
    return json.loads(done.stdout)


def measure(args, case, shape, flush):
    b, h, hk, s, d = shape
    torch.manual_seed(1)
    q = torch.randn(b * s, h, d, device="cuda", dtype=torch.bfloat16)
    k, v = (torch.randn(b * s, hk, d, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    sink = torch.zeros(1, device="cuda")
    bounds = torch.arange(b + 1, device="cuda", dtype=torch.int32) * s
    o = torch.zeros_like(q)
    lse = torch.zeros(b * s, h, device="cuda")
    tensors = {0: q, 1: k, 2: v, 3: sink, 4: bounds, 5: bounds, 8: o, 9: lse}
    dims = {"tokens": b * s, "kv_tokens": b * s, "sinks": 0, "bounds": b + 1}
    flops = 4 * b * h * d * (s * (s + 1) / 2)
    heads = [x.view(b, s, -1, d).transpose(1, 2) for x in (q, k, v)]

    def peer(backend):
        with sdpa_kernel(backend):
            return F.scaled_dot_product_attention(*heads, is_causal=True, enable_gqa=h != hk)

    ours = {}
    for settings in args.sets:
        emitted = emit(args, case, settings)
        bm = next((int(x[3:]) for x in settings if x.startswith("bm=")), 128)
        grid = (-(-s // bm), h, b)
        name = ",".join(settings) or "default"
        ours[name] = Kernel(emitted, tensors, {"max_q": s, "scale": d**-0.5}, dims, grid)
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
    taken = {name: times(run, flush) for name, run in ours.items()}
    peers = {name: times(lambda: peer(backend), flush) for name, backend in PEERS.items()}
    for name, run in ours.items():
        taken[name] += times(run, flush)
    rate = lambda us: flops / us / 1e6
    result = {"case": case, "batch": b, "heads": h, "kv_heads": hk, "length": s, "head_dim": d, "ours": {}, "peers": {}}
    for name, us in peers.items():
        median = statistics.median(us)
        result["peers"][name] = {"us": round(median, 2), "tflops": round(rate(median), 1)}
    for name, us in taken.items():
        median = statistics.median(us)
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
    flush = torch.empty(FLUSH_BYTES, device="cuda", dtype=torch.uint8)
    results, failed = [], False
    for case, shape in SHAPES:
        if args.only in case:
            try:
                results.append(measure(args, case, shape, flush))
            except RuntimeError as error:
                failed = True
                print(case, error, flush=True)
    properties = torch.cuda.get_device_properties(0)
    smi = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    document = {
        "what": "causal attention in bf16, forward, beside torch.nn.functional.scaled_dot_product_attention on the same tensors "
        "in the same process",
        "machine": {
            "gpu": properties.name,
            "multiprocessors": properties.multi_processor_count,
            "driver": subprocess.run(smi, capture_output=True, text=True).stdout.strip(),
            "cuda": torch.version.cuda,
            "torch": torch.__version__,
        },
        "date": datetime.date.today().isoformat(),
        "method": "CUDA events around one launch, 256 MB written before each (cold L2 cache), normally distributed inputs; "
        "median of 60 launches of ours, 30 before and 30 after 30 of each peer; PTX assembled by the driver",
        "results": results,
    }
    if args.save:
        args.save.write_text(json.dumps(document, indent=1) + "\n")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
