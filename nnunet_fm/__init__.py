"""Foundation models for medical image segmentation inside stock nnU-Net v2 commands."""

__version__ = "0.1.0"
