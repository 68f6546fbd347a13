"""The CUDA backend: the twin of `cpu`, over C++ templates in `source`."""
