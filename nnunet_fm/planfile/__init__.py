"""Plan files: their schema, reading them without trust, and what a training takes from one."""
