"""What runs inside a sandboxed process: the standard library only."""
