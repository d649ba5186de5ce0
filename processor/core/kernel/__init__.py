"""The compiled kernel: parts of the core once more, in Cython, to the same bytes. May import nothing of ours."""
