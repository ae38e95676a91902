"""Measurements: ``python -m benchmarks run CASE``."""
