"""Timing laws, one file per class of machine: work on a machine becomes seconds. Chosen by `Hardware.law` in moetrace.cost."""

LAWS = ("gpu", "wafer")  # law "cpu" is the gpu law with a CPU's figures; links.py is a part of the gpu law
