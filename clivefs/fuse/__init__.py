"""The kernel conversation: requests, replies, errno, kernel caches. Decides nothing.

May import `mounts`, `objects` and `base`. `pyfuse3` is imported here and nowhere else.
"""
