"""Text from the decoder: cache, sampling, stopping."""
