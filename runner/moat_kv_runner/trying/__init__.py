"""Trying a script out: one run, here, without a claim, on a ground of its own.

The command line's `code PATH run` and `run at PATH try` come here, and the pytest plugin
(`moat_kv_runner.testing`). `ground` is a server in this process that the script's client is
connected to; what is not faked comes there from the real one (`behind`) when the script first asks
for it (`line`). `trial` is the run, `happenings` what is told of it. No state, no claim and no
error record is written anywhere but on the ground.
"""
