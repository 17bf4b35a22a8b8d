"""Points: what one recorded state of a workspace is, how it is found, and how it is shown.

Synchronous; may import `objects`, `base` and what of `mounts` a layer is made of. Where to begin:

    metadata      what a git tree does not say: modes, owners, times, attributes, empty directories
    point         a point as a git commit, and back
    index         the points and sessions of a workspace, found by time, number and name
    expressions   `-5m`, `yesterday 14:00`, `#123`: from what people write to a point
    past          a point's tree as a read-only tree of a view
    control       `.clive/sessions` and `.clive/at`
"""
