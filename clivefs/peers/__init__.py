"""Replication between stores over SSH (not built yet). May import `objects` and `base`."""
