"""Likelihoods, the scoring loop, the score store and the metrics."""
