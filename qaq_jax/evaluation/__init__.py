"""Benchmarks, judge, pass@k, comparison of rules."""
