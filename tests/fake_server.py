"""A small server that speaks the endpoints of vLLM or SGLang, on 127.0.0.1: what they answer and where they write."""

from __future__ import annotations

import base64
import gzip
import io
import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np

from tests.made import decode_trace

LAYERS, EXPERTS, TOPK = 3, 128, 8  # of the made-up trace: three layers of Qwen3-30B-A3B
SECRET = "canary-host"


class FakeEngine(ThreadingHTTPServer):
    """`engine` is vllm or sglang. `asked` lists (method, path, body); traces go to `folder` as the engine would write them."""

    daemon_threads = True

    def __init__(self, engine: str, folder: Path) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.engine, self.folder = engine, folder
        self.asked: list[tuple[str, str, Any]] = []
        self.profiler = True  # vLLM was started with --profiler-config
        self.experts: str | None = "stat"  # SGLang's --expert-distribution-recorder-mode
        self.routed = False  # vLLM's --enable-return-routed-experts
        self.key = ""
        self.redirect = ""
        self.ranks = 1  # each writes a trace
        self.tp = 0  # what SGLang says of them; 0: the truth
        self.slow_s = 0.0  # between the halves of a trace file
        self.broken = ""  # a path that answers 500
        self.garbage = ""  # a path that answers what is not JSON
        self.sleeps = ""  # a path that answers late
        self.breaks_profiled = False  # so does a load while the profiler runs
        self.loads: list[tuple[int, int, int]] = []  # (prompts, length, tokens) of each load
        self.profiled: list[tuple[int, int, int]] = []
        self.profiling: dict[str, Any] | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def write_traces(self, folder: Path, batch: int, steps: int) -> None:
        events = decode_trace(layers=LAYERS, steps=steps, batch=batch)
        if self.engine == "sglang":
            for event in events:
                if event["cat"] == "user_annotation":
                    event["name"] = f"step[DECODE bs={batch}]"
        trace = {"traceEvents": events, "baseTimeNanoseconds": 1_700_000_000_000_000_000, "host_name": SECRET}
        whole = gzip.compress(json.dumps(trace, indent=1).encode())
        names = {
            "vllm": "dp0_pp0_tp{0}_dcp0_ep0_rank{0}.17.pt.trace.json.gz",
            "sglang": "17-TP-{0}.trace.json.gz",
        }
        for rank in reversed(range(self.ranks)):
            trace["distributedInfo"] = {"backend": "nccl", "rank": rank, "world_size": self.ranks}
            body = gzip.compress(json.dumps(trace, indent=1).encode())
            path = folder / names[self.engine].format(rank)
            path.write_bytes(body[: len(body) // 2])
            time.sleep(self.slow_s)
            path.write_bytes(body)
        if self.engine == "vllm":
            (folder / f"{SECRET}_1.async_llm.18.pt.trace.json.gz").write_bytes(gzip.compress(b"{}"))
            (folder / "capture_traces").mkdir(exist_ok=True)
            (folder / "capture_traces" / "rank0.1.pt.trace.json.gz").write_bytes(whole)


class _Handler(BaseHTTPRequestHandler):
    server: FakeEngine

    def log_message(self, *_: Any) -> None:
        pass

    def answer(self, status: int, body: object = "", **headers: str) -> None:
        data = body.encode() if isinstance(body, str) else json.dumps(body).encode()
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def do_GET(self) -> None:
        self._serve(None)

    def do_POST(self) -> None:
        raw = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self._serve(json.loads(raw) if raw else None)

    def _serve(self, body: Any) -> None:
        fake = self.server
        fake.asked.append((self.command, self.path, body))
        if fake.key and self.headers.get("Authorization") != f"Bearer {fake.key}":
            return self.answer(401, {"error": "Unauthorized"})
        if fake.redirect:
            return self.answer(307, Location=fake.redirect + self.path)
        if fake.broken == self.path or (
            fake.breaks_profiled and fake.profiling is not None and self.path == "/v1/completions"
        ):
            return self.answer(500, "it\nbroke")
        if fake.garbage == self.path:
            return self.answer(200, "<html>")
        if fake.sleeps == self.path:
            time.sleep(0.5)
        name = f"{self.command} {self.path}"
        known = {
            "GET /v1/models": self.models,
            "POST /v1/completions": self.completions,
            "POST /start_profile": self.start,
            "POST /stop_profile": self.stop,
            "GET /version": self.version,
            "GET /server_info": self.info,
            "POST /start_expert_distribution_record": self.nothing,
            "POST /stop_expert_distribution_record": self.nothing,
            "POST /dump_expert_distribution_record": self.dump,
        }
        found = known.get(name)
        return self.answer(404, {"detail": "Not Found"}) if found is None else found(body)

    def models(self, _: Any) -> None:
        self.answer(
            200, {"object": "list", "data": [{"id": "qwen", "root": "Qwen/Qwen3-30B-A3B-Instruct-2507"}]}
        )

    def version(self, _: Any) -> None:
        self.answer(*((200, {"version": "0.22.0"}) if self.server.engine == "vllm" else (404, "")))

    def info(self, _: Any) -> None:
        if self.server.engine == "vllm":
            return self.answer(404)
        told = {
            "model_path": "Qwen/Qwen3-30B-A3B",
            "version": "0.5.6",
            "tp_size": self.server.tp or self.server.ranks,
            "ep_size": 1,
            "dtype": "bfloat16",
            "host": SECRET,
            "api_key": "canary-key",
            "attention_backend": "fa3",
            "expert_distribution_recorder_mode": self.server.experts,
        }
        return self.answer(200, told)

    def completions(self, body: Any) -> None:
        fake = self.server
        sizes = (len(body["prompt"]), len(body["prompt"][0]), body["max_tokens"])
        fake.loads.append(sizes)
        if fake.profiling is not None:
            fake.profiled.append(sizes)
        choices: list[dict[str, Any]] = [{"index": i, "text": "canary-text"} for i in range(sizes[0])]
        if fake.routed:
            fed = sizes[1] + sizes[2] - 1
            for i, choice in enumerate(choices):
                random = np.random.default_rng(i)
                ids = np.stack(
                    [[random.permutation(EXPERTS)[:TOPK] for _ in range(LAYERS)] for _ in range(fed)]
                )
                file = io.BytesIO()
                np.save(file, ids.astype(np.int32))
                choice["routed_experts"] = base64.b64encode(file.getvalue()).decode()
        self.answer(200, {"choices": choices, "usage": {"completion_tokens": sizes[0] * sizes[2]}})

    def start(self, body: Any) -> None:
        if not self.server.profiler:
            return self.answer(404, {"detail": "Not Found"})
        self.server.profiling = body or {}
        return self.answer(200, "Start profiling.\n" if self.server.engine == "sglang" else "")

    def stop(self, _: Any) -> None:
        fake = self.server
        if fake.profiling is None:
            return self.answer(400, "Profiling is not in progress")
        folder = Path(fake.profiling.get("output_dir", fake.folder))
        batch, _, tokens = fake.profiled[-1] if fake.profiled else (4, 0, 3)
        fake.profiling = None
        # The server answers before its traces are written.
        threading.Thread(target=fake.write_traces, args=(folder, batch, tokens - 1)).start()
        return self.answer(200)

    def nothing(self, _: Any) -> None:
        self.answer(200)

    def dump(self, _: Any) -> None:
        import torch

        fake = self.server
        batch, _, tokens = fake.profiled[-1]
        counts = torch.zeros(64, LAYERS, EXPERTS, dtype=torch.int32)
        counts[: tokens - 1, :, : TOPK * 2] = batch // 2
        told = {"rank": 0, "logical_count": counts, "average_utilization_rate_over_window": None}
        torch.save(told, fake.folder / f"expert_distribution_recorder_{time.time()}.pt")
        self.answer(200, "Dump expert distribution record.\n")


@contextmanager
def serving(engine: str, folder: Path) -> Iterator[FakeEngine]:
    """A fake engine in a thread of its own."""
    fake = FakeEngine(engine, folder)
    thread = threading.Thread(target=fake.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield fake
    finally:
        fake.shutdown()
        fake.server_close()
        thread.join()
