#!/usr/bin/env bash
# Runs the small problems of every kernel on the GPU under NVIDIA's compute-sanitizer and says which tools found what.
#
#   benches/gpu/sanitize.sh [-b ZELLIGE] [-o DIR] [-t SECONDS] [KERNEL..]
#
#   -b  the command to check (default: target/release/zellige)
#   -o  where the logs and summary.tsv go (default: a new directory under the system's temporary one)
#   -t  seconds for one kernel under one tool (default: 300)
#
# TOOLS names the tools (default: all four). The exit status is 0 if no tool found anything.
set -euo pipefail

zellige=target/release/zellige
out=""
limit=300
while getopts "b:o:t:" option; do
    case "$option" in
        b) zellige="$OPTARG" ;;
        o) out="$OPTARG" ;;
        t) limit="$OPTARG" ;;
        *) exit 2 ;;
    esac
done
shift $((OPTIND - 1))
read -r -a tools <<< "${TOOLS:-memcheck racecheck initcheck synccheck}"
command -v compute-sanitizer > /dev/null || { echo "compute-sanitizer is not on the PATH; it is part of the CUDA toolkit" >&2; exit 2; }
[[ -x "$zellige" ]] || { echo "$zellige is not there: build it with cargo build --release, or name it with -b" >&2; exit 2; }
out="${out:-$(mktemp -d)}"
mkdir -p "$out"

if [[ $# -gt 0 ]]; then
    kernels=("$@")
else
    mapfile -t kernels < <("$zellige" list --json | sed -n 's/^ *"kernel": "\(.*\)",$/\1/p')
fi

# Exit status of the sanitizer when it found something; the command's own are 0 to 2.
found=99
summary="$out/summary.tsv"
printf 'kernel\ttool\tresult\n' > "$summary"
bad=0
for kernel in "${kernels[@]}"; do
    line="$kernel"
    for tool in "${tools[@]}"; do
        log="$out/$kernel.$tool.log"
        status=0
        timeout "$limit" compute-sanitizer --tool "$tool" --error-exitcode "$found" --print-limit 20 \
            "$zellige" check "$kernel" --device cuda --scale small --repeats 0 > "$log" 2>&1 || status=$?
        case "$status" in
            0) result=clean ;;
            1) result="wrong results" ;;
            124) result="over $limit s" ;;
            "$found") result="$(grep -oE '(ERROR|RACECHECK) SUMMARY: .*' "$log" | tail -n 1 || true)"; result="${result:-errors}" ;;
            *) result="exit status $status" ;;
        esac
        [[ "$status" -eq 0 ]] || bad=$((bad + 1))
        printf '%s\t%s\t%s\n' "$kernel" "$tool" "$result" >> "$summary"
        line+="  $tool: $result"
    done
    echo "$line"
done
echo
echo "${#kernels[@]} kernels, ${#tools[@]} tools: $bad of $((${#kernels[@]} * ${#tools[@]})) runs not clean; logs in $out"
[[ "$bad" -eq 0 ]]
