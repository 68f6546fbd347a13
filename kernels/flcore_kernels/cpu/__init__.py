"""The CPU backend: kernels in Python that Numba compiles, and their drivers."""
