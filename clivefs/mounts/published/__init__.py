"""Published modules: fetched by their ecosystem's client, unpacked into git trees in the store."""
