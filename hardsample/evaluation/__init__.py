"""How often a model is right, with intervals; published benchmarks and judges; two folders compared."""
