"""The operations on a CPU: cache-blocked tensor expressions, and loops compiled by numba."""
