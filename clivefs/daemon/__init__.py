"""The composition root: one process that serves one mountpoint. Wires the other packages together."""
