"""Strata and selection rules over a score table."""
