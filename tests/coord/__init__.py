"""Coordination: locks, references, updates, aggregates."""
