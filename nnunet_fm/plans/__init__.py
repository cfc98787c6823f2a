"""Planning: from a dataset's fingerprint and a model card to nnU-Net plans, and the preprocessing they name."""
