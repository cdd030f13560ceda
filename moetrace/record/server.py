"""A running vLLM or SGLang server, profiled under a built-in load or beside live traffic -> a recording.

The engine writes its traces itself, into a folder that must be seen from here too. Kept of it: the trace of each rank (of
several each in a folder of its own, which `parse` reads as ranks), its graph capture if there is one, what the engine
says of how it runs, and its export of which experts were chosen if it makes one. Not kept: prompts, tokens, host and user
names, paths, keys.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np

from moetrace import __version__
from moetrace.errors import MoetraceError, OutputError
from moetrace.model import ModelSpec, load_config, load_model, model_names
from moetrace.record import capture, routing_export
from moetrace.record.engines import Engine, find_engine
from moetrace.record.facts import RECORDING_VERSION
from moetrace.record.files import (
    CAPTURE_FILE,
    RECORDING_FILE,
    ROUTING_FILE,
    TRACE_FILE,
    check_output,
    publish,
    rank_folder,
    staging,
)
from moetrace.record.http import Client
from moetrace.record.traces import Traces, keep_trace
from moetrace.routing import Routing

_MAX_PROMPTS = 64 << 20
_STOP_S = 1800.0  # an engine may write its traces for many minutes before it answers a stop
_WARM_UP_TOKENS = 4
_WHY_NONE = {
    "vllm": "none: the server was not started with --enable-return-routed-experts, or the load was not of random tokens",
    "sglang": "none: the server was not started with --expert-distribution-recorder-mode, or no --expert-dir was given",
}
_NAME = re.compile(r"[\w.+-]{1,128}")
_TOKEN_IDS = (100, 1100)  # plain tokens in any vocabulary, no special ones


@dataclass(frozen=True, slots=True)
class Attachment:
    """What to record of the server at `url`.

    `batch` prompts of `context` random tokens, or those of the file `prompts`, each continued by `steps` + 1 tokens; or,
    with `live_s`, whatever others send within so many seconds. `trace_dir`: where the engine writes its traces;
    `expert_dir`: where SGLang writes its expert distribution; `capture_trace`: a trace of the graph capture to keep.
    `model` is the architecture's name or config where the server does not tell; `options` go to the profiler.
    """

    url: str
    trace_dir: Path | None = None
    expert_dir: Path | None = None
    capture_trace: Path | None = None
    model: str | None = None
    batch: int = 16
    context: int = 512
    steps: int = 4
    prompts: Path | None = None
    live_s: float | None = None
    seed: int = 0
    timeout_s: float = 600.0
    key_variable: str = ""
    options: Mapping[str, str] = field(default_factory=dict)


def record_server(
    what: Attachment,
    out: str | os.PathLike[str],
    *,
    force: bool = False,
    progress: Callable[[str], None] = lambda _: None,
) -> dict[str, Any]:
    """Profile the server and write a recording into `out`; return what recording.json says.

    Raises MoetraceError: no such server, no profiler in it, no trace within the timeout.
    """
    target = Path(out)
    check_output(target, force)
    client = Client(what.url, what.timeout_s, what.key_variable)
    engine = find_engine(client)
    options = engine.options(what.options)
    name, config, spec = _model(what.model, engine)
    prompts = None if what.live_s is not None else _prompts(what)
    progress(f"{engine.name} {engine.version} serves {name}")
    made = staging(target)
    own = None if what.trace_dir else Path(tempfile.mkdtemp(prefix="moetrace-traces-"))
    try:
        if own is not None:
            own.chmod(0o777)  # the server may run as another user
        if engine.name == "vllm" and what.trace_dir is None:
            raise MoetraceError(
                "--trace-dir is needed: the torch_profiler_dir that this vLLM was started with"
            )
        session = _Session(client, engine, what, options, Traces(what.trace_dir or own or made), progress)
        facts, routing = session.run(made, prompts, spec)
        facts = _facts(engine, what, name, config) | facts
        ranks = facts["trace"]["ranks"]
        for rank, folder in enumerate(_folders(made, ranks)):
            if routing is not None:
                routing.save(folder / ROUTING_FILE)
            place = {"parallelism": {"world_size": ranks, "rank": rank}}
            (folder / RECORDING_FILE).write_text(json.dumps(facts | place, indent=2) + "\n")
        publish(made, target, force)
    except OSError as failure:
        raise OutputError(f"{target}: the recording could not be written: {failure.strerror}") from failure
    finally:
        shutil.rmtree(made, ignore_errors=True)
        if own is not None:
            shutil.rmtree(own, ignore_errors=True)
    return facts


@dataclass(slots=True)
class _Session:
    """One profile of one server."""

    client: Client
    engine: Engine
    what: Attachment
    options: Mapping[str, Any]
    traces: Traces
    progress: Callable[[str], None]

    def run(
        self, made: Path, prompts: list[Any] | None, spec: ModelSpec | None
    ) -> tuple[dict[str, Any], Routing | None]:
        """(what was measured, the routing that the engine told); the traces are kept in `made`."""
        what, facts = self.what, dict[str, Any]()
        if prompts is not None:
            self.progress("warming up, and timing the load without the profiler")
            self._load(_other(prompts, what.seed + 1), _WARM_UP_TOKENS)
            facts["unprofiled_load_s"] = self._load(_other(prompts, what.seed + 2), what.steps + 1)[0]
        experts = self._expert_records()
        self.traces.mark()
        self.progress("profiling")
        self.engine.start(self.client, self.traces.folder, self.options)
        answer: Mapping[str, Any] = {}
        try:
            if prompts is None:
                time.sleep(what.live_s or 0.0)
            else:
                facts["recorded_load_s"], answer = self._load(prompts, what.steps + 1)
        finally:
            self.engine.stop(self.client, max(_STOP_S, what.timeout_s))
        routing, source = self._of_answer(answer, prompts, spec)
        if routing is None:
            source = _WHY_NONE[self.engine.name]
        if experts is not None:
            routing, source = experts.collect(self.client, what.timeout_s, spec)
        self.progress("waiting for the traces")
        facts["trace"] = self.traces.keep(
            lambda rank, ranks: _folders(made, ranks)[rank] / TRACE_FILE, what.timeout_s, self.engine.ranks
        )
        folders = _folders(made, facts["trace"]["ranks"])
        captured = [what.capture_trace] if what.capture_trace else self.traces.captures()
        for rank, folder in enumerate(folders if captured else ()):
            keep_trace(captured[rank if len(captured) == len(folders) else 0], folder / CAPTURE_FILE)
        facts["routing"] = {"source": source}
        return facts, routing

    def _expert_records(self) -> routing_export.ExpertRecords | None:
        """SGLang's own record of the experts, begun; None where the server was not started with one."""
        if not self.engine.records_experts or self.what.expert_dir is None:
            return None
        return routing_export.ExpertRecords.begin(self.client, self.what.expert_dir)

    def _of_answer(
        self, answer: Mapping[str, Any], prompts: list[Any] | None, spec: ModelSpec | None
    ) -> tuple[Routing | None, str]:
        if not prompts or isinstance(prompts[0], str):  # how many tokens a text has is not told
            return None, "none"
        return routing_export.of_answer(answer, len(prompts[0]), spec)

    def _load(self, prompts: list[Any], tokens: int) -> tuple[float, Mapping[str, Any]]:
        """(seconds, answer) of one request with all the prompts, each continued by so many tokens."""
        body = {
            "model": self.engine.model_id,
            "prompt": prompts,
            "max_tokens": tokens,
            "temperature": 0,
            "ignore_eos": True,
        }
        began = time.perf_counter()
        answer = self.client.post_json("/v1/completions", body)
        took = round(time.perf_counter() - began, 6)
        if not isinstance(answer, dict) or len(answer.get("choices") or ()) != len(prompts):
            raise MoetraceError(f"the server's answer to /v1/completions has not {len(prompts)} choices")
        return took, answer


def _folders(made: Path, ranks: int) -> list[Path]:
    """Where each rank's files go."""
    return [made] if ranks == 1 else [rank_folder(made, rank) for rank in range(ranks)]


def _prompts(what: Attachment) -> list[Any]:
    """Token ids [batch, context], or texts: the file's, over again where it has fewer."""
    if what.prompts is None:
        return _random(what.batch, what.context, what.seed)
    try:
        with what.prompts.open("rb") as file:
            raw = file.read(_MAX_PROMPTS + 1)
    except OSError as error:
        raise MoetraceError(f"{what.prompts}: cannot be read ({error.strerror})") from None
    if len(raw) > _MAX_PROMPTS:
        raise MoetraceError(f"{what.prompts}: larger than {_MAX_PROMPTS >> 20} MiB")
    texts = [
        _prompt(line, what.prompts) for line in raw.decode(errors="replace").splitlines() if line.strip()
    ]
    if not texts:
        raise MoetraceError(
            f"{what.prompts}: no prompts (expected one on each line, or JSON with a 'prompt')"
        )
    return [texts[i % len(texts)] for i in range(what.batch)]


def _prompt(line: str, path: Path) -> str:
    if not line.lstrip().startswith("{"):
        return line
    try:
        found = json.loads(line)
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict) or not isinstance(found.get("prompt"), str):
        raise MoetraceError(
            f"{path}: a line begins like JSON but is not an object with a text 'prompt': {line[:40]!r}"
        )
    return str(found["prompt"])


def _random(batch: int, context: int, seed: int) -> list[Any]:
    ids: list[Any] = np.random.default_rng(seed).integers(*_TOKEN_IDS, (batch, context)).tolist()
    return ids


def _other(prompts: list[Any], seed: int) -> list[Any]:
    """Prompts of the same sizes that a prefix cache has not seen; texts stay, for their length in tokens is not known."""
    return prompts if isinstance(prompts[0], str) else _random(len(prompts), len(prompts[0]), seed)


def _model(given: str | None, engine: Engine) -> tuple[str, dict[str, Any], ModelSpec | None]:
    """(name, config, spec): as given, else of the server's own folder, else by name in the catalogue, else a name alone."""
    served = (engine.root or engine.model_id).rstrip("/").rpartition("/")[2].lower()
    known = [name for name in model_names() if served == name or served.startswith(f"{name}-")]
    source = given
    if source is None and engine.root and (Path(engine.root) / "config.json").is_file():
        source = engine.root
    if source is None and known:
        source = max(known, key=len)
    if source is None:
        return served if _NAME.fullmatch(served) else engine.name, {}, None
    spec = load_model(source)
    return spec.name, load_config(source), spec


def _facts(engine: Engine, what: Attachment, name: str, config: Mapping[str, Any]) -> dict[str, Any]:
    live = what.live_s is not None
    fields = capture.config_facts(config)
    return {
        "schema": RECORDING_VERSION,
        "moetrace": __version__,
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "ended": "complete",
        "model": name,
        "model_config": fields,
        "native_layers": fields.get("num_hidden_layers"),
        "engine": engine.name,
        "engine_version": engine.version,
        "engine_facts": dict(engine.facts),
        "weights": "served",
        "profile_options": dict(what.options),
        "batch": None if live else what.batch,
        "context": None if live or what.prompts else what.context,
        "decode_steps": None if live else what.steps,
        "seed": what.seed,
        "workload": "live traffic"
        if live
        else f"{'prompts of a file' if what.prompts else 'random token ids'}, one request of {what.batch} prompts",
    }
