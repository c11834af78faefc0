"""Asking a model about an encrypted picture."""
