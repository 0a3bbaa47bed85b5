"""Samples in and out."""
