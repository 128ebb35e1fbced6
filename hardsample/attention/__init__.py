"""Attention masses of any transformers model, read inline in the forward."""
