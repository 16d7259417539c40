"""What the scripts beside this one share: kernels from `zellige emit`, launched on PyTorch's tensors and timed.

Needs a GPU and PyTorch built for it. `ptxas` of CUDA's toolkit assembles the PTX if it is on the path, several files at a
time; the driver does if not.
"""

import argparse
import concurrent.futures
import ctypes
import datetime
import functools
import json
import os
import pathlib
import shutil
import statistics
import subprocess
import tempfile

import torch

LAUNCHES = 30
FLUSH_BYTES = 256 << 20
ELEMENTS = {"u8": 0, "f8e4m3": 0, "f8e5m2": 0, "f4e2m1": 0, "i32": 4, "f16": 6, "f32": 7, "bf16": 9}
TF32 = 11
SCALARS = {"index": ctypes.c_int64, "i64": ctypes.c_int64, "i32": ctypes.c_int32, "f32": ctypes.c_float}
SWIZZLES = {0: 0, 32: 1, 64: 2, 128: 3}

cuda = ctypes.CDLL("libcuda.so.1")


def driver(name, *args):
    status = getattr(cuda, name)(*args)
    if status != 0:
        text = ctypes.c_char_p()
        cuda.cuGetErrorString(status, ctypes.byref(text))
        raise RuntimeError(f"{name}: {text.value.decode() if text.value else status}")


def tensor_map(tensor, spec):
    """The hardware's description of a contiguous tensor in boxes of `spec`; pairs of e2m1 are the bytes of an u8 tensor."""
    element = TF32 if spec["tf32"] else ELEMENTS[spec["dtype"]]
    sizes = list(reversed(tensor.shape))
    strides = [s * tensor.element_size() for s in reversed(tensor.stride())][1:]
    rank = len(sizes)
    memory = ctypes.create_string_buffer(256)
    at = (ctypes.addressof(memory) + 63) // 64 * 64
    driver(
        "cuTensorMapEncodeTiled",
        ctypes.c_void_p(at),
        ctypes.c_int(element),
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


def working(shape, emitted, rows):
    """The configs that compiled, with their kernels; the others become rows that say why not."""
    for settings, kernel in emitted.items():
        if isinstance(kernel, RuntimeError):
            print(shape, settings, kernel, flush=True)
            rows.append({"config": settings, "message": str(kernel)})
        else:
            yield settings, kernel


class LaunchConfig(ctypes.Structure):
    """CUlaunchConfig."""

    _fields_ = [(name, ctypes.c_uint) for name in ("gx", "gy", "gz", "bx", "by", "bz", "shared")] + [
        ("stream", ctypes.c_void_p),
        ("attributes", ctypes.c_void_p),
        ("count", ctypes.c_uint),
    ]


class Kernel:
    """A compiled kernel as `zellige emit --stage ptx --json` prints it, with its arguments.

    `tensors` by the name of the parameter, `scalars` and `dims` by name. `grid` counts the author's blocks; it need not be
    given if all extents were.
    """

    def __init__(self, emitted, tensors, scalars, dims, grid=None):
        module, self.function = ctypes.c_void_p(), ctypes.c_void_p()
        code = emitted.get("cubin") or emitted["text"].encode()
        driver("cuModuleLoadData", ctypes.byref(module), ctypes.c_char_p(code))
        driver("cuModuleGetFunction", ctypes.byref(self.function), module, emitted["entry"].encode())
        shared = emitted["shared_bytes"]
        driver("cuFuncSetAttribute", self.function, 8, shared)
        self.registers = self.attribute(4)
        self.local_bytes = self.attribute(3)
        self.threads, self.shared, self.cluster = emitted["threads"], shared, emitted["cluster"]
        grid = emitted["blocks"] if grid is None else grid
        blocks = 1
        for extent in grid:
            blocks *= extent
        if emitted["grid"] != "AsWritten":
            resident = self.resident()
            # A cluster takes a block of the grid, or as many as it has blocks of its own.
            wanted = blocks * self.cluster if emitted["grid"] == "Spread" else -(-blocks // self.cluster) * self.cluster
            grid = (min(wanted, resident), 1, 1)
        self.grid, self.kept, pointers = (*grid, 1, 1)[:3], [], []
        names = {slot["Base"]["param"]: slot["Base"]["name"] for slot in emitted["params"] if "Base" in slot}
        for slot in emitted["params"]:
            (kind, data), = slot.items()
            if kind == "Base":
                value = ctypes.c_uint64(tensors[data["name"]].data_ptr())
            elif kind == "Stride":
                value = ctypes.c_int64(tensors[names[data["param"]]].stride(data["axis"]))
            elif kind == "Dim":
                value = ctypes.c_int32(dims[data["name"]])
            elif kind == "Scalar":
                value = SCALARS[data["dtype"]](scalars[data["name"]])
            elif kind == "Counter":
                self.counter = torch.zeros(1, device="cuda", dtype=torch.int32)
                value = ctypes.c_uint64(self.counter.data_ptr())
            elif kind == "Failure":
                # Nobody reads which assertion failed.
                value = ctypes.c_uint64(0)
            else:
                memory, at = tensor_map(tensors[names[data["param"]]], data["map"])
                self.kept.append(memory)
                pointers.append(at)
                continue
            self.kept.append(value)
            pointers.append(ctypes.addressof(value))
        self.params = (ctypes.c_void_p * len(pointers))(*pointers)

    def resident(self):
        """Blocks that run at once, one for each multiprocessor as far as clusters fit on them."""
        count = torch.cuda.get_device_properties(0).multi_processor_count
        if self.cluster == 1:
            return count
        config = LaunchConfig(self.cluster, 1, 1, self.threads, 1, 1, self.shared, None, None, 0)
        clusters = ctypes.c_int()
        driver("cuOccupancyMaxActiveClusters", ctypes.byref(clusters), self.function, ctypes.byref(config))
        return min(max(clusters.value, 1), count // self.cluster) * self.cluster

    def attribute(self, which):
        value = ctypes.c_int()
        driver("cuFuncGetAttribute", ctypes.byref(value), which, self.function)
        return value.value

    def __call__(self):
        stream = ctypes.c_void_p(torch.cuda.current_stream().cuda_stream)
        driver("cuLaunchKernel", self.function, *self.grid, self.threads, 1, 1, self.shared, stream, self.params, None)


def method(launches=LAUNCHES, flush_bytes=FLUSH_BYTES):
    """How [`times`] is used, for a file."""
    return (
        f"CUDA events around one launch, {flush_bytes >> 20} MB written before each (cold L2 cache), normally distributed "
        f"inputs; median of {2 * launches} launches of ours, {launches} before and {launches} after {launches} of each peer"
    )


def flush_buffer():
    return torch.empty(FLUSH_BYTES, device="cuda", dtype=torch.uint8)


def times(run, flush, launches=LAUNCHES):
    """Microseconds of each of so many launches."""
    events = []
    for _ in range(launches):
        flush.zero_()
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        run()
        end.record()
        events.append((start, end))
    torch.cuda.synchronize()
    return [1000 * a.elapsed_time(b) for a, b in events]


def median(us):
    return statistics.median(us)


def emit(zellige, kernel, target="sm_90a", case=None, dims=None, dtypes=None, settings=()):
    """What `zellige emit --stage ptx --json` prints."""
    command = [zellige, "emit", kernel, "--stage", "ptx", "--target", target, "--json"]
    if case is not None:
        command += ["--case", case]
    for name, extent in (dims or {}).items():
        command += ["--dim", f"{name}={extent}"]
    for name, dtype in (dtypes or {}).items():
        command += ["--dtype", f"{name}={dtype}"]
    for setting in settings:
        command += ["--set", setting]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        raise RuntimeError(done.stderr.strip())
    return json.loads(done.stdout)


def assemble(emitted):
    """Adds the machine code, if `ptxas` is there."""
    if shutil.which("ptxas") is None:
        return emitted
    arch = "sm_90a" if emitted["target"].startswith("sm_90a") else "sm_90"
    with tempfile.TemporaryDirectory() as folder:
        source, code = os.path.join(folder, "k.ptx"), os.path.join(folder, "k.cubin")
        with open(source, "w") as f:
            f.write(emitted["text"])
        done = subprocess.run(["ptxas", f"-arch={arch}", source, "-o", code], capture_output=True, text=True)
        if done.returncode != 0:
            raise RuntimeError(done.stderr.strip())
        with open(code, "rb") as f:
            emitted["cubin"] = f.read()
    return emitted


def emit_all(wanted):
    """Runs [`emit`] and [`assemble`] for every value of a dict of keyword arguments, several at a time.

    Returns a dict of the results, or of the errors where there is no result.
    """

    def one(args):
        try:
            return assemble(emit(**args))
        except RuntimeError as error:
            return error

    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        return dict(zip(wanted, pool.map(one, wanted.values())))


@functools.cache
def machine():
    """Where a measurement was made, for its file."""
    properties = torch.cuda.get_device_properties(0)
    smi = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    return {
        "gpu": properties.name,
        "multiprocessors": properties.multi_processor_count,
        "driver": subprocess.run(smi, capture_output=True, text=True).stdout.strip(),
        "cuda": torch.version.cuda,
        "torch": torch.__version__,
    }


def copy_gb_per_s(flush):
    """What a large copy moves, bytes read and written."""
    from_, to = (torch.empty(1 << 30, device="cuda", dtype=torch.uint8) for _ in range(2))
    us = median(times(lambda: to.copy_(from_), flush, 10))
    return round(2 * from_.numel() / us / 1e3, 1)


def document(what, method, **more):
    return {
        "what": what,
        "machine": machine(),
        "date": datetime.date.today().isoformat(),
        "method": method,
        **more,
    }


def parse_shape(shape):
    """M, N and K of a product written as MxNxK."""
    try:
        m, n, k = (int(x) for x in shape.split("x"))
    except ValueError:
        raise argparse.ArgumentTypeError(f"`{shape}` is not of the form MxNxK") from None
    return m, n, k


def compare_shapes(description, shapes, emit_of, measure, what):
    """The command line of a script that times products beside a peer; returns its exit status.

    `emit_of(m, n, k)` gives what [`emit`] wants but for the command and the settings; `measure(shape, emitted, flush, launches)` the
    rows of a shape, `emitted` by settings.
    """
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--zellige", default="target/release/zellige")
    parser.add_argument("--shape", dest="shapes", action="append", type=parse_shape)
    parser.add_argument("--set", dest="sets", action="append", default=[])
    parser.add_argument("--launches", type=int, default=LAUNCHES)
    parser.add_argument("--save", type=pathlib.Path)
    args = parser.parse_args()
    shapes = args.shapes or shapes
    wanted = {}
    for shape in shapes:
        for settings in dict.fromkeys(["", *args.sets]):
            changes = {"zellige": args.zellige, "settings": [s for s in settings.split(",") if s]}
            wanted[shape, settings] = emit_of(*shape) | changes
    flush = flush_buffer()
    emitted = emit_all(wanted)
    rows = []
    for shape in shapes:
        rows += measure(shape, {s: e for (of, s), e in emitted.items() if of == shape}, flush, args.launches)
        if args.save:
            args.save.write_text(json.dumps(document(what, method(args.launches), rows=rows), indent=1) + "\n")
    return 1 if any("message" in row for row in rows) else 0
