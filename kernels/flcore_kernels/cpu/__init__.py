"""The CPU backend: `backend` drives loops that Numba compiles."""
