"""The client: one object that talks to whichever server of a network answers.

In the order of the way of a request: `client` (what users call), `writes` and `results` (what goes
in and comes out), `link` (keeps a line, repeats what may be repeated), `handshake` and `address`
(how a line comes about), `connection` (one line). Streams: `streams`, `watch`, `mirror`, `monitor`,
`groups`. `session` keeps a session alive. `moat_kv` hands the public names out.
"""
