"""Chat templates to token ids and scored spans; training examples; prompts."""
