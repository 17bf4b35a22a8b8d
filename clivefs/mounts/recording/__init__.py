"""Recording: from changed paths to a new tree and its metadata tree.

Works in a thread on backing directories and object ids, never on the nodes of a view; synchronous, may import
`objects`, `base` and what of `mounts` a layer is made of. Where to begin:

    parts         what a workspace is made of, as the recorder sees it
    recorder      `Recorder.record`: dirty paths in, a tree out
    scan          a whole directory, looked at afresh: its files hashed, its trees written
    layers        which file stands at a path: the upper's, or the lower's as the marks say
    recordedtree  the editor of the tree and the metadata tree together
    statcache     which file has which content, so that an unchanged one is not read again
    ignore        git's ignore rules; `tracked`: what git's index knows in spite of them
    outside       changes made behind the mount's back
"""
