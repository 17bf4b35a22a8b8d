"""Forks: writable copies of a workspace as it was at a point, made in constant time.

    records     what is known of each fork, in the store
    tree        the overlay that a fork is
    recorded    what a fork shows, as a recorded state
    merging     what a fork brings back, as a plan

Synchronous, like all of `mounts`; `daemon.forks` shows forks and applies what they bring back.
"""
