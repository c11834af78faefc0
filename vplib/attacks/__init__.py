"""Attacks on models and their training data (survey section 3.2), a folder a notebook."""
