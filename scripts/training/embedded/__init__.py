"""The embedded model's grammar, drawings, reader and networks, shared by its training and its checks."""
