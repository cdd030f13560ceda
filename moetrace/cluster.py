"""A Dask cluster that exists: `pip install "moetrace[dask]"` here and on every worker.

What is submitted runs on the workers as their user, and what they send back is unpickled here. TLS is Dask's own configuration.
"""

from __future__ import annotations

from typing import Any

from moetrace.errors import MoetraceError

_CONNECT_S = 10


def connected(scheduler: str, kind: type[MoetraceError]) -> Any:
    """The `distributed.Client` of the scheduler at an address.

    Raises an error of this kind if Dask is not installed, nobody answers there, or a TLS address has no certificates.
    """
    try:
        from distributed import Client
    except ImportError as err:
        raise kind('--scheduler needs Dask: pip install "moetrace[dask]"') from err
    try:
        return Client(scheduler, timeout=_CONNECT_S)
    except (OSError, ValueError) as err:
        raise kind(f"--scheduler {scheduler}: no Dask scheduler answers there ({err})") from err
    except TypeError as err:  # distributed's, for a TLS address and a configuration without certificates
        if not scheduler.startswith("tls:"):
            raise
        raise kind(
            f"--scheduler {scheduler}: TLS needs the certificates of Dask's configuration: distributed.comm.tls.ca-file, "
            "client.cert and client.key (docs/ranks.md)"
        ) from err
