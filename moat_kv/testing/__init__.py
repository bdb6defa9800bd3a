"""What the authors of engines, scripts and integrations test against, shipped with the core.

Imported by tests and by demonstrations only; nothing in the server, the client or the runner
imports from here. Each module says what it offers; none of them is imported by this one, so that
taking one (the simulated 1-wire bus, say) does not pay for the others.
"""
