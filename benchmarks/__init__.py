"""Timings that no test should depend on."""
