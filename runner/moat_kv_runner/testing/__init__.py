"""Tests of users' scripts: a box with a server in memory, virtual time, and the script in it.

`moat_kv_pytest` makes pytest fixtures of it; without pytest, `box.running_box` is the same. `box`
is what a test works on, `script_run` one script in it, `looping` the event loop behind it.
"""
