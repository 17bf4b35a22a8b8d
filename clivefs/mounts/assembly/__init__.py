"""From a mount entry to the tree that it shows: `assembly` is the way in."""
