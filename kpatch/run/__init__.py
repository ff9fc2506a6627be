"""Planning, running and undoing of patches."""
