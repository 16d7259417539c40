#!/usr/bin/env python3
"""Writes what `zellige bench --device cuda --save` measured as a Markdown table.

    python3 benches/gpu/table.py benches/results/h200-bench.json > docs/speed.md
"""

import json
import pathlib
import sys

HEAD = """# Speed on a GPU

Every kernel of the library at a size of DeepSeek-V4, from `{name}` (`benches/results/README.md` says how it was taken): median
launch with a cold L2 cache. A copy of a gigabyte moves {copy:.0f} GB/s there, read and written. "of a copy" compares with a copy of as
many bytes timed in the same way, for problems of fewer than 50 operations a byte. Written by `benches/gpu/table.py`.

| kernel | problem | us | GB/s | TFLOP/s | of a copy |
| --- | --- | --- | --- | --- | --- |"""


def main():
    path = pathlib.Path(sys.argv[1])
    document = json.loads(path.read_text())
    print(HEAD.format(name=path.name, copy=document["copy_gb_per_s"]))
    for row in document["rows"]:
        if row["time_us"] is None:
            continue
        tflops = row["tflop_per_s"] or 0
        share = row["of_equal_copy"]
        case = row["case"].replace("|", "\\|")
        print(
            f"| `{row['kernel']}` | {case} | {row['time_us']:.1f} | {row['gb_per_s']:.0f} "
            f"| {f'{tflops:.0f}' if tflops >= 1 else ''} | {f'{share:.2f}' if share else ''} |"
        )


if __name__ == "__main__":
    main()
