"""The wire without I/O: frames and messages, the same on both sides (docs/protocol.md)."""
