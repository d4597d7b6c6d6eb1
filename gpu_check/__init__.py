"""Proves on one GPU what a CPU cannot: `make gpu-check`. Needs torch and transformers alone; see docs/gpu.md."""
