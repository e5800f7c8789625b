"""Measurements that no test should depend on: `python -m benchmarks list`."""
