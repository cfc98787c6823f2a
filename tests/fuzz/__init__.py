"""Every reader of files that somebody else wrote, as a function of bytes: for property-based tests and for fuzzing."""
