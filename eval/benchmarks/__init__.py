"""Public benchmarks of judges: their files, the official arithmetic, and the results as table, JSON and page."""
