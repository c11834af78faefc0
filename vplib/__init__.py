"""The executable companion to visual privacy: the thin library under the notebooks."""

__version__ = "0.1.0"
