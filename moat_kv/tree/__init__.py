"""The tree in memory: nodes, walking, watchers, patches. Pure: no clock, no I/O."""
