"""Speed and memory beside stock nnU-Net and the official code: ``python -m benchmarks`` from the repository's root.

A module per subject; each lists its comparisons in ``BENCHMARKS``. They are not installed with the package.
"""
