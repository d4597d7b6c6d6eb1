"""Checks on a GPU what a CPU cannot show: `make gpu-check`. Needs torch and transformers alone; see docs/gpu.md."""
