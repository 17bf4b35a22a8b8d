"""clivefs: a workspace filesystem."""

__version__ = "0.1.0"
