"""Preprocessing: from a raw dataset to the arrays that a network is trained on and predicts from."""
