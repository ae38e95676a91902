"""The experiments of the papers: a module each, with an `EXPERIMENT`."""
