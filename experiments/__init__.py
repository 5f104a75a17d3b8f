"""Experiments: configurations, the command line, scripts, benchmarks, results."""
