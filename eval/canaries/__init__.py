"""Prompts whose answers an export brings along: made once, and checked by every engine before it judges."""
