"""Official checkpoints: finding, reading and loading them, with every key accounted for."""
