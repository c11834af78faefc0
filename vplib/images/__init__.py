"""Protecting photographs, one module a technique family (survey section 3.2.3)."""
