"""Lines of an epoch in nnU-Net's training log."""

from __future__ import annotations

LOG = """
2026-11-22 04:09:02.598007: Epoch {epoch}
2026-11-22 04:09:02.598007: Current learning rate: 0.001
2026-11-22 04:09:02.598007: train_loss {loss}
2026-11-22 04:09:02.598007: val_loss -0.25
2026-11-22 04:09:02.598007: Pseudo dice [np.float32(0.8), np.float32(nan), 0.6]
2026-11-22 04:09:02.598007: Epoch time: {seconds} s
2026-11-22 04:09:02.598007: Yayy! New best EMA pseudo Dice: 0.7
"""
