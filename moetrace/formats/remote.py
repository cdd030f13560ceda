"""Files behind URLs that fsspec opens: streamed, and one line where they cannot be reached."""

from __future__ import annotations

import glob
import io
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import IO, Any, cast

from moetrace.errors import MoetraceError, TraceError


@dataclass(frozen=True, slots=True)
class Remote:
    """A file behind a URL, with those of a Path's methods that a reader needs. The bytes are streamed, not stored."""

    url: str
    _fs: Any
    _path: str
    size: int

    def __str__(self) -> str:
        return self.url

    @property
    def name(self) -> str:
        """The last part; of a web address without what follows a question mark, which may be a signature."""
        path = re.split("[?#]", self.url)[0] if self.url.startswith(("http:", "https:")) else self.url
        return path.rstrip("/").rsplit("/", 1)[-1]

    @property
    def suffix(self) -> str:
        return Path(self.name).suffix

    def exists(self) -> bool:
        return True

    def is_file(self) -> bool:
        return True

    def stat(self) -> SimpleNamespace:
        return SimpleNamespace(st_size=self.size)

    def open(self, mode: str = "rb") -> IO[bytes]:
        """The file for reading. Raises TraceError where it cannot be reached, now or while it is read."""
        with reached(self.url):
            return cast(IO[bytes], _Stream(self.url, self._fs.open(self._path, mode)))


class _Stream(io.RawIOBase):
    """A file behind a URL for reading: where the connection fails, that is no damage of the file."""

    def __init__(self, url: str, file: Any) -> None:
        self._url, self._file = url, file

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        with reached(self._url):
            return bytes(self._file.read(size))

    def seek(self, offset: int, whence: int = 0) -> int:
        with reached(self._url):
            return int(self._file.seek(offset, whence))

    def tell(self) -> int:
        return int(self._file.tell())

    def close(self) -> None:
        if not self.closed:
            with reached(self._url):
                self._file.close()
        super().close()


@contextmanager
def reached(
    url: str, kind: type[MoetraceError] = TraceError, failed: str = "{} cannot be opened"
) -> Iterator[None]:
    """Raises an error of this kind with one line for what Python or a store's client raises where a URL cannot be reached.

    Clients (botocore, httpx, google.auth and so on) have exceptions of their own, which have nothing in common.
    """
    try:
        yield
    except (OSError, ValueError, ImportError, NotImplementedError) as err:
        raise kind(f"{failed.format(url)} ({_said(err, url)})") from err
    except Exception as err:
        if type(err).__module__.partition(".")[0] not in ("builtins", "moetrace"):
            raise kind(f"{failed.format(url)} ({_said(err, url)})") from err
        raise


def _said(err: Exception, url: str) -> str:
    """What an exception says in a line; a file that is not there often says only its name."""
    said = " ".join(str(err).split())[:160]
    if isinstance(err, FileNotFoundError) and (not said or said in url or url in said):
        return "there is no such file"
    return said or type(err).__name__


def file_system(url: str) -> tuple[Any, str]:
    """(fsspec's file system, the path in it) of a URL. Raises TraceError where there is none for it."""
    try:
        from fsspec.core import url_to_fs
    except ImportError:
        raise TraceError(f"{url}: a URL needs fsspec: pip install 'moetrace[remote]'") from None
    with reached(url):
        fs, path = url_to_fs(url)
    return fs, str(path)


def files_at(url: str) -> list[Remote]:
    """The files that a URL means: those its pattern matches, or those in it, ascending; none where it is one file.

    Raises TraceError where it cannot be reached.
    """
    fs, path = file_system(url)
    with reached(url):
        if glob.has_magic(path):
            found = list(fs.glob(path, detail=True).values())
        elif fs.isdir(path):
            found = fs.ls(path, detail=True)
        else:
            return []
    files = [f for f in found if f.get("type") == "file"]
    return sorted(
        (Remote(fs.unstrip_protocol(f["name"]), fs, f["name"], int(f.get("size") or 0)) for f in files),
        key=lambda remote: remote.url,
    )


def remote_file(url: str) -> Remote:
    """The one file that a URL names. Raises TraceError where it cannot be reached, or is none."""
    fs, path = file_system(url)
    with reached(url):
        info = fs.info(path)
    if info.get("type") == "directory" or not isinstance(info.get("size"), int):
        raise TraceError(
            f"{url} is not a file of a known size: expected the URL of one trace file (a RUN is copied here first)"
        )
    return Remote(url, fs, path, int(info["size"]))
