"""Records that a training or a prediction leaves beside its results."""
