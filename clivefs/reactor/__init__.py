"""Rules, services and the graph between them (not built yet). May import `mounts`, `objects` and `base`."""
