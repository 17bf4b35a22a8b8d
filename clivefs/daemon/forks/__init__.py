"""Forks of mounted workspaces: shown in `.clive/forks`, made, merged, listed and dropped."""
