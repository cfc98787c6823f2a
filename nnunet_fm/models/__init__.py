"""Models: cards, names, and building of networks."""
