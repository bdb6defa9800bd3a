"""How fast, how small: the server and client beside the plainest things that could do their work.

`python -m benchmarks NAME` runs one benchmark, `all` every one; `__main__` has the options, and
`network` is about many servers. Each compares in alternating rounds of one run, because the machine
may be busy with other things too.
"""
