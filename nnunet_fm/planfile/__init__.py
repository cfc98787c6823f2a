"""Plan files: schema, untrusted reading, writing, and the training configuration of a plan."""
