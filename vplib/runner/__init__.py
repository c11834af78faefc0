"""Runs notebooks, reports on them, and the `vplib` command."""
