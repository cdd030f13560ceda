"""Object storage: traces read from an S3 server, RUNs written to it, and every verb that takes a RUN reading one there.

The server is moto's, a process of its own. Marked `debian`, as it and s3fs are installed by `make test-all` alone.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request

import pytest

from moetrace.cli.main import run as moetrace
from tests.conftest import SHIPPED
from tests.made import rank_traces, write

pytestmark = pytest.mark.debian
_ENV = {"AWS_ACCESS_KEY_ID": "any", "AWS_SECRET_ACCESS_KEY": "any", "AWS_DEFAULT_REGION": "us-east-1"}


@pytest.fixture(scope="module")
def bucket(tmp_path_factory):
    """A bucket with a recording and the traces of four ranks."""
    import s3fs

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    address = f"http://127.0.0.1:{port}"
    server = subprocess.Popen(
        [sys.executable, "-m", "moto.server", "-p", str(port)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    before = dict(os.environ)
    os.environ |= {**_ENV, "AWS_ENDPOINT_URL": address}
    try:
        _wait_for(address)
        store = s3fs.S3FileSystem()
        store.mkdir("bucket")
        store.put_file(str(SHIPPED / "trace.json.gz"), "bucket/one/trace.json.gz")
        local = tmp_path_factory.mktemp("ranks")
        for rank, events in enumerate(rank_traces([100, 130, 110, 120], clocks=[0, 70, 30, 5])):
            path = write(local / f"rank{rank}.json", events, distributedInfo={"rank": rank, "world_size": 4})
            store.put_file(str(path), f"bucket/many/{path.name}")
        yield "s3://bucket"
    finally:
        os.environ.clear()
        os.environ.update(before)
        server.terminate()
        server.wait(30)


def _wait_for(address):
    for _ in range(300):
        try:
            urllib.request.urlopen(address, timeout=5).close()
            return
        except (urllib.error.URLError, OSError):
            time.sleep(0.1)
    raise AssertionError("moto's server did not start")


@pytest.fixture(scope="module")
def stored(bucket):
    """The same with the RUNs of both."""
    assert moetrace(["parse", f"{bucket}/one/trace.json.gz", "-o", f"{bucket}/run"]) == 0
    assert moetrace(["parse", f"{bucket}/many", "-o", f"{bucket}/ranks"]) == 0
    return bucket


@pytest.mark.parametrize("name", ["run", "ranks"])
@pytest.mark.parametrize(
    "verb",
    [
        ("attribute", "{}", "--hw", "{hw}"),
        ("replay", "{}", "--hw", "{hw}"),
        ("show", "{}", "--hw", "{hw}"),
        ("report", "{}", "-o", "page.html", "--hw", "{hw}"),
        ("export", "{}", "--perfetto", "-o", "t.json"),
        ("diff", "{}", "{}"),
        ("parse", "{}/rank-0", "-o", "copy"),
        ("doctor", "{}"),
    ],
    ids=lambda verb: verb[0],
)
def test_every_verb_reads_a_run_in_the_store(stored, verb, name, call, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    url = f"{stored}/{name}"
    if verb[0] == "parse" and name == "run":
        url, verb = f"{stored}/run", ("parse", "{}", "-o", "copy")
    answer = call(*(word.format(url, hw="h100-sxm-x4" if name == "ranks" else "h100-sxm") for word in verb))
    assert answer.status == (1 if verb[0] == "doctor" else 0), answer.err


def test_what_is_there_is_replaced_only_with_force(stored, call):
    source = f"{stored}/one/trace.json.gz"
    for target in ("run", "ranks", "many"):
        answer = call("parse", source, "-o", f"{stored}/{target}")
        assert answer.status == 2 and f"{stored}/{target} exists" in answer.err
    answer = call("parse", source, "-o", f"{stored}/many", "--force")
    assert answer.status == 2 and "is not a RUN's" in answer.err
    assert call("parse", source, "-o", f"{stored}/run", "--force").status == 0


def test_a_bucket_that_is_not_there_is_one_line(stored, call):
    for url in ("s3://absent/run", f"{stored}/absent", f"{stored}/one/absent.json"):
        answer = call("attribute", url, "--hw", "h100-sxm")
        assert answer.status == 2 and len(answer.error_lines) == 1 and url in answer.err
