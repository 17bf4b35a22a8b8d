"""One module a command: `configure(parser)` adds its arguments, `run(call)` does it and returns the exit code."""
