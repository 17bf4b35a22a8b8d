"""The store: git objects, refs, durability. Synchronous; may import `base`."""
