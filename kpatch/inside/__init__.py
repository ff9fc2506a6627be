"""Patches inside a model: in its graph, in its calls, in its training."""
