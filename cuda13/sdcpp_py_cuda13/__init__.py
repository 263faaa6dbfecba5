"""The CUDA module of sdcpp-py, which finds it here; there is nothing to call."""
