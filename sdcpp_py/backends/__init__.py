"""Packages that bring one more ggml backend: where each module is, what it needs, why it cannot be used."""
