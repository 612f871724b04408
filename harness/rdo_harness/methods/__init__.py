"""Compression methods, one per file: each turns a trained model into a compressed checkpoint per operating point."""
