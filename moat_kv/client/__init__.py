"""The client: one object that talks to whichever server of a network answers.

In the order of the way of a request: `opening`, `client`, `reading` and `writing` (what users
call), `writes` and `results` (what goes in and comes out), `link` (keeps a line, repeats what may
be repeated), `handshake`, `address` and `backoff` (how a line comes about), `connection` and
`direct` (one line). Answers in parts: `streams`, `subscription`, `watch`, `mirror` and `active`,
`monitor`, `groups`, `hashes` (with which `comparing` compares servers). `session` keeps a session
alive. `moat_kv` hands the public names out.
"""
