"""Patches: read, applied on trees, and shown as layers."""
