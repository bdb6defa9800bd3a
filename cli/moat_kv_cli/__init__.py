"""The `moat` command."""
