"""What a model is: its card, its name, and the network that both describe."""
