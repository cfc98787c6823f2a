"""Losses of supervised training, deep supervision and adaptation."""
