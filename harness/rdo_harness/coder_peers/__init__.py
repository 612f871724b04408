"""Entropy coders and compressors of others beside ours, one per file, for ``rdo compare-coders``."""
