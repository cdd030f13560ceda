"""The examples of README.md and docs/: found, run, their output compared and pasted anew.

``python -m tests.examples`` (part of ``make docs``) writes the output of every command into the pages again. The rules for an
example are in docs/architecture.md.
"""
