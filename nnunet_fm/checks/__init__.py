"""Checks of an installation, of a machine and of a dataset: one file per subject, each a generator of findings."""
