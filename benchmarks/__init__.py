"""Benchmarks: ``python -m benchmarks``. Ratios against a peer in the same run."""
