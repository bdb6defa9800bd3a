"""The runner: takes jobs from the tree and runs them on the nodes of a group."""
