"""Directories of this machine: what is in them, as a layer and as a tree, and what happens to them meanwhile."""
