"""Servers that share a tree through NATS, beside a bare nats-py client, etcd and Redis.

`python -m benchmarks network NAME` runs one benchmark, `network all` every one.
"""
