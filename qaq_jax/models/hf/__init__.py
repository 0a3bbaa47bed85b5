"""Hugging Face files of every family: configs, weights, export."""
