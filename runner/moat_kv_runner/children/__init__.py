"""Scripts in processes of their own: how they are started, held, talked to and ended.

Three kinds of process, each forked by the one before. The `forkserver` has everything imported and
forks on demand. A `keeper` for each child outlives the runner, adopts whatever its child leaves
behind, and ends all of it. The child (`child`, `inside`) runs the script. On the runner's side
`nursery` asks for children, `child_process` talks to one, and `process_run` makes it a run.
"""
