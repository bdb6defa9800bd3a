"""`./dev demo`: the whole line once, live, on this machine.

`play` is the plot, `children` the processes, `seen` what the tree says, `findings` what must have
been seen, `show` what is on the screen. Nothing here is used by the product itself.
"""
