"""Difficulty known without rolling out: a predictor, a model of ladders, the adaptive search."""
