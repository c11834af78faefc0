"""Attacks against defenses, brought together (survey sections 3.2 and 4.2), a folder a notebook."""
