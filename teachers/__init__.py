"""Scoring at scale: prompts as token ids in, raw three-way logits out, one file or folder a backend."""
