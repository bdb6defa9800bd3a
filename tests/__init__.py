"""Tests, and the runner of the tour; a package so that its name stands for this folder alone."""
