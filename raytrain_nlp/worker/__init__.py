"""What runs inside one Ray Train worker: `loop.py` is the story of a run, the other modules are its parts."""
