"""Engines: who holds the truth; `base` is the contract, each other module one technology."""
