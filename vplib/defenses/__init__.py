"""Defenses, one module a technique family (survey section 4.2)."""
