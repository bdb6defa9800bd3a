"""The server: connections, actions on the tree, sessions and groups."""
