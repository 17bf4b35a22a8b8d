"""A user's edits of an overlay as a patch, a commit, or moved onto another release."""
