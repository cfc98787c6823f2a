"""Building blocks that compute on a processor (CPU) faster than PyTorch's own, with equal results and state dicts."""
