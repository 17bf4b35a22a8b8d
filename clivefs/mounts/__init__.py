"""Sources, layers, the union, views, and `Clive.toml`: what a workspace shows, and where it comes from.

Synchronous throughout (no trio): an operation on a view runs whole or raises. May import `objects` and
`base`.
"""
