"""What travels and is aggregated: named tensors over a flat parameter space."""
