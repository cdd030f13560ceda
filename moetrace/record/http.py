"""A small HTTP client for an engine's own endpoints: http(s) only, one host, bounded answers, no proxy."""

from __future__ import annotations

import http.client
import json
import os
import urllib.error
import urllib.parse
import urllib.request
from typing import Any

from moetrace.errors import MoetraceError

_MAX_BYTES = 1 << 30
_SAID = 200  # characters of an error's body that are repeated


class RefusalError(MoetraceError):
    """An answer other than 2xx; `status` is its number."""

    def __init__(self, text: str, status: int) -> None:
        super().__init__(text)
        self.status = status


class Client:
    """Asks the server at `url`, whose paths begin there. `timeout` is in seconds, for each answer.

    The value of the environment variable `key_variable`, if given, is sent as a bearer token and kept nowhere. A redirect
    to another host or port, or from https to http, is refused. Raises MoetraceError for a URL that is not http(s).
    """

    def __init__(self, url: str, timeout: float, key_variable: str = "") -> None:
        parts = _split(url)
        self._base = f"{parts.scheme}://{parts.netloc}{parts.path.rstrip('/')}"
        self._timeout = timeout
        self._headers = {"Accept": "application/json", "Accept-Encoding": "identity"}
        if key_variable:
            if not os.environ.get(key_variable):
                raise MoetraceError(f"--api-key-env {key_variable}: there is no such environment variable")
            self._headers["Authorization"] = f"Bearer {os.environ[key_variable]}"
        self._opener = urllib.request.build_opener(urllib.request.ProxyHandler({}), _SameHost())

    def get(self, path: str) -> Any:
        """The JSON that a GET answers; None where there is no such path."""
        try:
            return _json(self._ask("GET", path, None, self._timeout), path)
        except RefusalError as refusal:
            if refusal.status in (404, 405):
                return None
            raise

    def post(self, path: str, body: object = None, timeout: float | None = None) -> bytes:
        """The body that a POST of this JSON answers. Raises RefusalError unless it is 2xx, MoetraceError if none comes."""
        data = b"" if body is None else json.dumps(body).encode()
        return self._ask("POST", path, data, self._timeout if timeout is None else timeout)

    def post_json(self, path: str, body: object, timeout: float | None = None) -> Any:
        """The JSON that a POST of this JSON answers."""
        return _json(self.post(path, body, timeout), path)

    def _ask(self, method: str, path: str, data: bytes | None, timeout: float) -> bytes:
        url = self._base + path
        headers = {**self._headers, **({"Content-Type": "application/json"} if data else {})}
        request = urllib.request.Request(url, data, headers, method=method)  # noqa: S310 - http(s), see _split
        try:
            with self._opener.open(request, timeout=timeout) as answer:
                body: bytes = answer.read(_MAX_BYTES + 1)
        except urllib.error.HTTPError as refusal:
            with refusal:
                said = " ".join(refusal.read(_SAID).decode(errors="replace").split())
            raise RefusalError(
                f"{url} answers {refusal.code}: {said or refusal.reason}", refusal.code
            ) from None
        except urllib.error.URLError as failure:
            raise MoetraceError(f"{url}: no answer ({failure.reason})") from None
        except (OSError, http.client.HTTPException) as failure:
            raise MoetraceError(f"{url}: no answer ({failure or type(failure).__name__})") from None
        if len(body) > _MAX_BYTES:
            raise MoetraceError(f"{url}: answers more than {_MAX_BYTES >> 20} MiB")
        return body


def _split(url: str) -> urllib.parse.SplitResult:
    expected = "expected http://HOST:PORT or https://HOST:PORT"
    try:
        parts = urllib.parse.urlsplit(url)
        parts.port  # noqa: B018 - raises for one that is not a number
    except ValueError:
        raise MoetraceError(f"--server {url}: {expected}") from None
    if (
        parts.scheme not in ("http", "https")
        or not parts.hostname
        or parts.username
        or parts.query
        or parts.fragment
    ):
        raise MoetraceError(f"--server {url}: {expected}, without a user, query or fragment")
    return parts


class _SameHost(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> Any:
        old, new = urllib.parse.urlsplit(req.full_url), urllib.parse.urlsplit(newurl)
        if (old.scheme, old.netloc) != (new.scheme, new.netloc):
            raise MoetraceError(
                f"{req.full_url}: redirects to another host ({newurl}), which is not followed"
            )
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _json(body: bytes, path: str) -> Any:
    try:
        return json.loads(body)
    except (ValueError, RecursionError):
        raise MoetraceError(f"the server's answer to {path} is not JSON") from None
