"""A user's edits over the sources of mounted workspaces, live: as patches, commits, layers, and on other releases."""
