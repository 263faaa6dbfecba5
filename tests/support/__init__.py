"""What several tests and the benchmarks share. Importing any of it starts nothing: no engine, no backend."""
