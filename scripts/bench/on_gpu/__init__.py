"""The parts of the benchmark on a GPU, scripts/bench/gpu.py: what is measured, by whom, and what it means."""
