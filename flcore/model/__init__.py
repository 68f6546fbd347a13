"""Models: named tensors over a flat parameter space, in memory and in files."""
