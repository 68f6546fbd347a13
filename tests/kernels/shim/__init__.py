"""A CUDA device played by the processor: kernels compiled by g++, and streams that work as late as they may."""
