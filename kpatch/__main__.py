"""`python -m kpatch` is the command line."""

from kpatch.tools.command_line import main

if __name__ == "__main__":
    main(prog_name="kpatch")
