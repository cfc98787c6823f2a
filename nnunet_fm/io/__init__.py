"""Files on the disk: read without trust, written in one step, and what nnU-Net's folders hold."""
