"""Proves every kernel on this machine, then times it: ``python -m rdo_harness.gpu`` (``--cpu`` without a GPU).

Nothing is timed while a check is red. Arms alternate within one run, and ratios are of medians; the bandwidth that
kernels are compared with is that of a copy measured in the same run.
"""
