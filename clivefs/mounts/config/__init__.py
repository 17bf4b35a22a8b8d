"""`Clive.toml` and what stands beside it: reading, checking and editing it, trust, and `Clive.lock`."""
