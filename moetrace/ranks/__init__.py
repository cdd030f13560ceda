"""The ranks of one run as one Run: those of a directory that `moetrace parse DIR -o` wrote, read as one table by one clock."""

from moetrace.ranks.value import FOLDER, TABLE, Ranks

__all__ = ["FOLDER", "TABLE", "Ranks"]
