"""Speed of a mounted workspace against plain directories and `git worktree add`: `./bench/run [--quick]`."""
