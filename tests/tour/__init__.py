"""Run the commands of a README as printed, and compare what they print with what it says.

`./dev tour` calls this as `python -m tests.tour README.md`. It reads fenced blocks marked `console`
and nothing else; each line of one is one of these:

    $ COMMAND              typed by the reader, who waits until it ends; its exit code has to be 0,
    $ COMMAND  # exit 3    or what such a comment says
    terminal 2$ COMMAND    typed in another terminal, where it may go on running
    terminal 2$ ^C         the reader stops what runs there
    terminal 2:            now this terminal shows:
    > MORE                 the command goes on; `>` may be missing in a here-document and after a
                           backslash, so that the block can be copied and pasted
    anything else          what has to be printed; `...` stands for any text within a line, and
                           alone on a line for any lines (at the end of what another terminal
                           shows: for whatever comes until the README speaks of it again)

The commands run in bash, in real terminals of 80 columns without colours, in a temporary folder
that shows the README's own folder by links, with a temporary home: nothing of the user's is read,
and nothing is written there. Whatever another terminal prints has to be announced as well. All that
was started is ended, and what does not end by itself on ^C is reported.

`blocks` reads the README, `terminal` is one shell, `walk` does the steps, `place` makes and clears
the surroundings, `__main__` tells how it went.
"""
