"""Prediction that records what it takes, and feature maps of trained models."""
