"""What runs leave on the node that ran them: what they printed and logged, and how they ended.

`sink` takes it from a run, `recorder` hands it to a thread of its own, `files` is what that thread
does on the disk. `answering` tells of it to whoever asks by fleeting messages, and `asking` is the
side of the desk. Nothing here ever holds up a run, or fails one.
"""
