"""Attacks on images and their defenses (survey sections 3.1 and 4.1), a folder a notebook."""
