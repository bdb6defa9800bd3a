"""Procedures and modules that are stored in the tree, and how they become callable."""
