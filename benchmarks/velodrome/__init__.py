"""Fixed image tasks of VeLOdrome, the published curves of hand-made optimizers, and scores."""
