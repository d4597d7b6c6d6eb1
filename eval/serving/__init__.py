"""The HTTP service over an exported judge: `server.py` starts it, `routes.py` is what it answers."""
