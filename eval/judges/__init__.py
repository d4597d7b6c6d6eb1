"""The judges of an evaluation: who they are (`candidates`), what they answer (`answers`), and the baselines."""
