"""Attention: one function chooses the implementation."""
