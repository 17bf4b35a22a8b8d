"""The store: git objects, refs, small records, durability; and foreign repositories, read in place.

Synchronous; may import `base`. Where to begin:

    encode        git's formats: names of objects, trees, commits, tags; which tree entries are not shown
    interface     ObjectStore and Batch: what every store does; store.Store is the one on disk,
                  memory.MemoryStore its twin
    repository    Repository: somebody else's repository
    fsck          is everything there and what it says it is
    errors        what can go wrong

lmdb is imported in `environment` alone, pygit2 in `repository` alone.
"""
