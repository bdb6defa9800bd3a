"""Tests of the client: pure protocol against a peer in memory, then against a real server."""
