"""Copying a model by asking it: knockoffs, and what their queries are made of."""
