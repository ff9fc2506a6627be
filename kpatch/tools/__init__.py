"""The command line: the commands, `--bind`, and `kpatch check`."""
