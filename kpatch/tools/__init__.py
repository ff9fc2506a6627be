"""The command line: the commands, the reading of `--bind`, and `kpatch check`."""
