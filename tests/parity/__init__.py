"""Numerical parity with the official implementations: see ``run.py``."""
