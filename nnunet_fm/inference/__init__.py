"""Prediction with a record of its times, and feature maps of trained models."""
