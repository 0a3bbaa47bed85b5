"""The same selection beyond memory, by DuckDB."""
