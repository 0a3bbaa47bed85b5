"""Processes, progress, the run log, chips."""
