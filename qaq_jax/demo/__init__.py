"""The embedded demo: mined pairs, planted defects and two tiny models."""
