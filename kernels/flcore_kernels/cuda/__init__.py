"""The CUDA backend, the twin of `cpu`: C++ templates in `source`, and their drivers."""
