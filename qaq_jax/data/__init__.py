"""Samples in and out, templates, batches."""
