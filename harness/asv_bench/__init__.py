"""Benchmarks for asv, one file a topic; every figure is one where smaller is better.

Code here is run against older commits too (asv takes the benchmarks of today and the package of then), so what is
measured is imported inside functions, and what a commit does not have yet is skipped.
"""
