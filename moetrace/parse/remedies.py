"""How to capture what a trace lacks: settings per engine and profiler, and the whole command.

vLLM's and SGLang's after their sources (0.22 and 0.5.6, see docs/recording.md), TensorRT-LLM's after its page on performance
analysis, the rest after the documentation of torch.profiler and Nsight Systems. None was run on a GPU here.
"""

from __future__ import annotations

ENGINES = ("vllm", "sglang", "tensorrt-llm", "transformers")
_NSYS = (
    "nsys profile -t cuda,nvtx --sample=none --cpuctxsw=none --cuda-graph-trace=node "
    "--capture-range=cudaProfilerApi --capture-range-end=stop -o out COMMAND"
)

_COMMANDS = {
    "vllm": (
        "vllm serve MODEL --enable-return-routed-experts --profiler-config "
        '\'{"profiler": "torch", "torch_profiler_dir": "/traces", "torch_profiler_record_shapes": true, '
        '"torch_profiler_with_stack": false, "ignore_frontend": true, "capture_torch_profiler": true, '
        '"detailed_trace_annotation": true}\'; then moetrace record --server URL --trace-dir /traces -o out'
    ),
    "sglang": (
        "SGLANG_EXPERT_DISTRIBUTION_RECORDER_DIR=/experts python -m sglang.launch_server --model-path MODEL "
        "--expert-distribution-recorder-mode stat; then moetrace record --server URL --trace-dir /traces "
        "--expert-dir /experts --profile-option record_shapes=true --profile-option with_stack=false -o out"
    ),
    "tensorrt-llm": (
        "TLLM_PROFILE_START_STOP=100-110 TLLM_TORCH_PROFILE_TRACE=trace.json trtllm-bench --model MODEL throughput ..."
    ),
    "transformers": "moetrace record -o out -- SCRIPT.py (it names steps and layers, and records shapes and routing)",
}

# Engine ("" for any) -> what is lacking -> what to do.
_ANY = {
    "host_only": "profile with activities CPU and CUDA, where the GPU may be profiled (on HPC systems ask for CUPTI access)",
    "names": "profile the host too (activities CPU and CUDA): operators name what kernels do not; parse --json lists the rest",
    "shapes": "torch.profiler.profile(record_shapes=True)",
    "steps": "name the steps: 'moetrace record -- SCRIPT.py', or rec.step(...) in your loop (docs/recording.md)",
    "requests": "profile while requests are decoded, and give this file with that trace: --capture-trace FILE, for its graphs",
    "few_steps": "profile more steps: ten or more decode steps behind the warm-up",
    "kv": "say it: --kv-len N, the KV tokens per sequence",
    "layers": "name the model (--model NAME or config.json), or record with moetrace, which names layers",
    "graph": "record the graph's capture under the same profiler too, and give it with --capture-trace FILE",
    "bytes": "name the model that ran: --model NAME or its config.json",
    "launches": "begin the profile before the steps of interest, and end it behind a torch.cuda.synchronize()",
    "ranks": "keep the trace of every rank of the run, in one folder, and give that: moetrace parse DIR -o OUT",
    "experts": "give what the routers chose: moetrace parse --routing FILE (docs/recording.md, Routing from elsewhere)",
    "hardware": "say where it ran: --hw NAME (see 'moetrace profiles')",
    "accepted": "take the mean accepted length from the engine's own metrics; the trace has each step's time",
    "padding": "load the server with as many sequences as it captured a graph for, or let it capture more sizes",
    "whole": "end the profile and let it write to the end before you stop the process, with room on the disk; copy again",
    "overhead": "torch.profiler.profile(with_stack=False, profile_memory=False), and a warm-up step before the recorded ones",
}
_OWN = {
    "vllm": {
        "shapes": "--profiler-config '{\"torch_profiler_record_shapes\": true, ...}'",
        "steps": "take the trace of a worker, not of the API server: --profiler-config '{\"ignore_frontend\": true, ...}'",
        "kv": "--profiler-config '{\"detailed_trace_annotation\": true, ...}', or --kv-len N here",
        "graph": (
            "--profiler-config '{\"capture_torch_profiler\": true, ...}', and give the file in capture_traces/ with "
            "--capture-trace FILE"
        ),
        "padding": "as many sequences as a graph was captured for; --compilation-config '{\"cudagraph_capture_sizes\": [...]}'",
        "experts": "--enable-return-routed-experts (0.22 on), and moetrace record --server or moetrace parse --routing FILE",
        "overhead": "--profiler-config '{\"torch_profiler_with_stack\": false, ...}'",
    },
    "sglang": {
        "shapes": "/start_profile with \"record_shapes\": true ('moetrace record --server URL' does)",
        "graph": "profile the server's start too, when it captures, and give that trace with --capture-trace FILE",
        "padding": "load as many sequences as a graph was captured for, or --cuda-graph-bs N ...",
        "experts": "--expert-distribution-recorder-mode stat, and its .pt file with moetrace parse --routing FILE",
        "overhead": '/start_profile with "with_stack": false',
    },
    "tensorrt-llm": {
        "steps": "TLLM_PROFILE_START_STOP=A-B with decode iterations only; under nsys also TLLM_LLMAPI_ENABLE_NVTX=1",
        "few_steps": "TLLM_PROFILE_START_STOP=100-110, or more iterations",
    },
    "transformers": {
        "shapes": "moetrace record -o out -- SCRIPT.py, which records shapes",
        "experts": "moetrace record -o out -- SCRIPT.py, which records the routers' choices",
    },
}
# Where nsys recorded, these go first.
_UNDER_NSYS = {
    "shapes": "torch.autograd.profiler.emit_nvtx(record_shapes=True) around the steps (eager code only), or --model NAME",
    "graph": "nsys profile --cuda-graph-trace=node (its default, graph, records a replay as one block), begun before "
    "the engine captures its graphs, with NVTX ranges on",
    "launches": "nsys profile --capture-range=cudaProfilerApi --capture-range-end=stop, begun before the steps of interest",
    "host_only": "nsys profile -t cuda,nvtx",
    "overhead": "nsys profile --sample=none --cpuctxsw=none",
}
_ENGINE_NVTX = {
    "vllm": "VLLM_NVTX_SCOPES_FOR_PROFILING=1 in vLLM's environment",
    "sglang": "--enable-layerwise-nvtx-marker of SGLang names modules, not steps: profile with torch for steps",
    "tensorrt-llm": "TLLM_LLMAPI_ENABLE_NVTX=1 in TensorRT-LLM's environment",
}


def remedy(lacking: str, engine: str | None, nsys: bool) -> str:
    """What to do about something that is lacking, for an engine (None: not known), recorded by nsys or by torch."""
    if nsys and lacking == "steps" and engine in _ENGINE_NVTX:
        return _ENGINE_NVTX[engine]
    if nsys and lacking in _UNDER_NSYS:
        return _UNDER_NSYS[lacking]
    return _OWN.get(engine or "", {}).get(lacking, _ANY[lacking])


def command(engine: str | None, nsys: bool) -> str:
    """The whole command that captures what moetrace can use; that of a script where the engine is not known."""
    return _NSYS if nsys else _COMMANDS[engine or "transformers"]
