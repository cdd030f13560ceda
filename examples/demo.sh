#!/bin/sh
# The main job on a recording that ships with the project: parse it, see where its time goes, replay it elsewhere.
# Usage: demo.sh OUTDIR (what an earlier demo left there is replaced). Run it from the repository's root.
set -eu
out=${1:-demo-out}
trace=traces/kineto/olmoe-1b-7b-l2-b16-cpu
mkdir -p "$out"

say() { printf '\n\n'; printf '== %s\n' "$1"; shift; for line; do printf '   %s\n' "$line"; done; printf '\n'; }

say "1. Parse: what is in the trace?" \
  "$trace is a real decode loop of OLMoE-1B-7B (2 of its 16 layers, batch 16)," \
  "recorded on a CPU with random weights."
moetrace parse "$trace" -o "$out/run" --force

say "2. Attribute: where did the CPU's time go, and what bounds it?" \
  "Held against what a CPU of its kind was measured to copy and multiply."
moetrace attribute "$out/run" --hw cpu --force

say "3. Replay on one H100, on eight with tensor parallelism, and on a CS-3, with all 16 layers." \
  "A CPU recording says what is computed and where tokens were routed; the times are the model's alone."
moetrace replay "$out/run" --hw h100-sxm,h100-sxm-x8,cs3 --set layers=native --set tp=8 -o "$out/replay-tp" --force

say "4. The same eight H100s with expert parallelism: whole experts on each GPU instead of slices of all."
moetrace replay "$out/run" --hw h100-sxm,h100-sxm-x8 --set layers=native --set ep=8 -o "$out/replay-ep" --force

say "5. Sweep: fewer activated experts per token (n_a), at two batch sizes." \
  "Fewer distinct experts are fewer bytes; the larger batch touches nearly all of them anyway."
moetrace replay "$out/run" --hw h100-sxm,cs3 --set layers=native --set batch=16,64 --set n_a=8,6,4,2 \
  -o "$out/sweep" --force

say "6. A timeline of the recorded run, to open at https://ui.perfetto.dev."
moetrace export "$out/run" --perfetto -o "$out/timeline.json" --force

say "$out/ holds the Parquet files of the recorded run (run/) and of every predicted one, and timeline.json."
