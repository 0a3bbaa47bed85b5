"""Strata, budgets, rules and selection over a score table."""
