"""Generation, benchmarks, sandboxed execution, pass@k."""
