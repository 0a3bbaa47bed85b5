"""Untrusted programs: a fresh, contained process for each."""
