"""Supervised training of the decoder."""
