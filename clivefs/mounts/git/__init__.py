"""Git repositories as layers: objects, trees, refs, private gitdirs, and merges of trees."""
