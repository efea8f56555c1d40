"""Benchmark bundles: what the attributor said of known faults, as tables, figures and a report."""
