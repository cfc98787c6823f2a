"""Adapting a trained model to another dataset: losses, pseudo-labels, two views, hidden labels, averaged teacher."""
