"""The union of a layer and a writable one over it: names, nodes, copy-up, and the intent log."""
