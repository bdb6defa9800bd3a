"""A tree of values that the nodes of a small fleet share: `import moat_kv` is the core."""
