"""Files on the disk: reading without trust, writing in one step, and the content of nnU-Net's folders."""
