"""Made-up traces that are complete: what an engine leaves of an MoE decode, event by event."""

from __future__ import annotations

import json
import tempfile

from moetrace.run import OPS_SCHEMA, TABLE_FACTS, Run, TableParts

LAYER = ("vllm::rms_norm_kernel", "nvjet_qkv", "vllm::rotary_embedding_kernel", "reshape_and_cache_flash", "flash_fwd_kernel",
         "nvjet_o", "vllm::rms_norm_kernel", "nvjet_router", "vllm::moe::topkGating<8>", "moe_align_block_size_kernel",
         "fused_moe_kernel", "vllm::act_and_mul_kernel", "fused_moe_kernel", "vllm::moe::moe_sum_kernel")  # fmt: skip
KINDS = ["norm", "qkv_proj", "rope", "kv_write", "attention", "o_proj", "norm", "router", "topk", "moe_align", "moe_gate_up",
         "moe_act", "moe_down", "moe_combine"]  # fmt: skip


def decode_trace(layers=3, steps=2, graph=False, batch=4):
    """Events of an MoE decode as an engine leaves them: annotations, launches and kernels, no shapes."""
    events, correlation, now = [], 0, 1000.0
    for step in range(steps):
        name = f"execute_context_0(0)_generation_{batch}({batch})"
        begin, host = now, now + 1
        kernels = [k for _ in range(layers) for k in LAYER] + [
            "vllm::rms_norm_kernel",
            "nvjet_lm_head",
            "ArgMaxOps",
        ]
        if graph:
            correlation += 1
            events.append(event("cudaGraphLaunch", "cuda_runtime", host, 2, tid=7, correlation=correlation))
        device = now + 10
        for kernel in kernels:
            if not graph:
                correlation += 1
                events.append(
                    event("cudaLaunchKernel", "cuda_runtime", host, 0.5, tid=7, correlation=correlation)
                )
                host += 1
            events.append(
                event(kernel, "kernel", device, 5, tid=3, pid=0, correlation=correlation, stream=3, device=0)
            )
            device += 6
        events.append(event(name, "user_annotation", begin, host - begin + 3, tid=7))
        now = max(device, host) + 50
    return events


def rank_traces(arrivals, clocks, transfer=10.0, group=0, steps=3):
    """Events of each rank of a run: decode steps of one expert kernel each, up to its arrival, and one all-reduce.

    `arrivals` are us from the begin of the step, per rank; the all-reduce ends `transfer` us behind its group's last arrival.
    `clocks` are what each rank's clock is ahead, in us.
    """
    size = group or len(arrivals)
    traces = []
    for rank, (arrival, ahead) in enumerate(zip(arrivals, clocks, strict=True)):
        last = max(arrivals[rank // size * size :][:size])
        events = []
        for step in range(steps):
            now = 1000.0 + 500 * step + ahead
            message = {
                "Collective name": "allreduce",
                "In msg nelems": 4096,
                "dtype": "BFloat16",
                "Group size": size,
            }
            place = {"tid": 7, "pid": rank, "stream": 7, "device": rank}
            ids = [10 * step + 1, 10 * step + 2]
            events += [
                event("execute_context_0(0)_generation_4(4)", "user_annotation", now - 20, 15, tid=1),
                *(event("cudaLaunchKernel", "cuda_runtime", now - 15 + i % 10, 0.5, tid=1, correlation=i) for i in ids),
                event("fused_moe_kernel", "kernel", now, arrival, correlation=ids[0], **place),
                event("ncclDevKernel_AllReduce_Sum_bf16", "kernel", now + arrival, last - arrival + transfer,
                      correlation=ids[1], **place, **message),
            ]  # fmt: skip
        traces.append(events)
    return traces


COLLECTIVES = {
    "allreduce": ("allreduce", "ncclDevKernel_AllReduce_Sum_bf16"),
    "alltoall": ("all_to_allv", "ncclDevKernel_SendRecv"),
}


def grid_traces(world, sends, clocks, work, steps=8, transfer=10.0, ranks=None, stated=False):
    """Events of each rank of a run whose collectives are of several groups, as they follow from who waits for whom.

    `sends` are (name, ranks in the group, stride, elements) in the order of a step; before each, rank r works
    `work(step, i, r)` us. Each of `clocks`, (us ahead, drift), shows
    ``t + ahead + drift t``. `stated`: traces say which ranks a group has.
    """
    now = [1000.0] * world
    events = [[] for _ in range(world)]

    def put(rank, name, start, dur, **args):
        ahead, drift = clocks[rank]
        shown, until = (round(t + ahead + drift * t, 3) for t in (start, start + dur))
        number = len(events[rank]) + 1
        called = begin + ahead + drift * begin - 19 + 0.01 * (number % 1000)
        launch = event("cudaLaunchKernel", "cuda_runtime", called, 0.005, tid=1, correlation=number)
        kernel = event(name, "kernel", shown, round(until - shown, 3), correlation=number, tid=7, pid=rank,
                       stream=7, device=0, **args)  # fmt: skip
        events[rank] += [launch, kernel]

    for step in range(steps):
        begin = max(now) + 100
        for rank in range(world):
            shown = begin + clocks[rank][0] + clocks[rank][1] * begin
            events[rank].append(
                event("execute_context_0(0)_generation_4(4)", "user_annotation", shown - 20, 15, tid=1)
            )
        now = [begin] * world
        for i, (name, size, stride, elements) in enumerate(sends):
            arrive = [now[r] + work(step, i, r) for r in range(world)]
            for rank in range(world):
                put(rank, "fused_moe_kernel", now[rank], arrive[rank] - now[rank])
            for rank in range(world):
                first = rank // (size * stride) * size * stride + rank % stride
                group = [first + j * stride for j in range(size)]
                last = max(arrive[r] for r in group)
                said, kernel = COLLECTIVES[name]
                message = {
                    "Collective name": said,
                    "In msg nelems": elements,
                    "dtype": "BFloat16",
                    "Group size": size,
                }
                if stated:
                    message["Process Group Ranks"] = str(group)
                put(rank, kernel, arrive[rank], last + transfer - arrive[rank], **message)
                now[rank] = last + transfer
    return [events[r] for r in (range(world) if ranks is None else ranks)]


def event(name, cat, ts, dur, tid, pid=1, **args):
    return {"ph": "X", "cat": cat, "name": name, "pid": pid, "tid": tid, "ts": ts, "dur": dur, "args": args}


def write(path, events, **top):
    path.write_text(
        json.dumps({"traceEvents": events, "baseTimeNanoseconds": 1_700_000_000_000_000_000, **top})
    )
    return path


def in_parts(run: Run, size: int) -> Run:
    """The same run, in a file whose parts have so many ops: whole steps, if that is what a step has, or a multiple."""
    table = run.table()
    parts = TableParts(OPS_SCHEMA.with_metadata(TABLE_FACTS), tempfile.TemporaryFile)
    for low in range(0, run.num_rows, size):
        parts.write(table.slice(low, size))
    return Run(run.meta, None, run.routing, file=parts.finish())
