"""Scores of predicted label maps, as one tidy table."""
