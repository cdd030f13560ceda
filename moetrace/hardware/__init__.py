"""Hardware profiles: TOML files of datasheet peaks, fitted efficiencies and assumptions, read into frozen values.

A profile is data; the timing law that uses it is code (`moetrace.machines`). Keys are checked exactly: an unknown key, a
wrong type or a value that cannot be meant is a ProfileError that names file, key and expectation. `machine` is the values,
`forms` the parameters of each form of the law, `files` finds and reads the TOML, `profile` makes the one of the other,
`match` finds a profiler's device. Format: docs/hardware.md.
"""

from __future__ import annotations

from moetrace.hardware.family import FOREIGN, Family, combined_error
from moetrace.hardware.files import profile_names, read_profile
from moetrace.hardware.forms import FORM_OF, SCHEMAS, Parameter, Schema, schema
from moetrace.hardware.machine import (
    ANY_ENGINE,
    BEYOND_ENGINES,
    ENGINES,
    FALLBACK,
    FASTEST,
    OF_BF16,
    OTHER_ENGINE,
    OTHER_VERSION,
    UNLIKE,
    Hardware,
    Link,
    Memory,
    Wafer,
    coefficient_family,
)
from moetrace.hardware.match import match_device
from moetrace.hardware.profile import LAWS, load_hardware, machines_of
from moetrace.hardware.variants import node_of

__all__ = [
    "ANY_ENGINE", "BEYOND_ENGINES", "ENGINES", "FALLBACK", "FASTEST", "FOREIGN", "FORM_OF", "LAWS", "OF_BF16", "OTHER_ENGINE",
    "OTHER_VERSION", "SCHEMAS", "UNLIKE", "Family", "Hardware", "Link", "Memory", "Parameter", "Schema", "Wafer",
    "coefficient_family", "combined_error", "load_hardware", "machines_of", "match_device", "node_of", "profile_names",
    "read_profile", "schema",
]  # fmt: skip
