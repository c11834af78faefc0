"""Defenses of models and their training data (survey section 4.2), a folder a notebook."""
