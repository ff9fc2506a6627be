"""From a patch and a model to writes: planning, running, undoing."""
