"""Real faults: what they are put on, how they are put on and measured, and how they are taken off, also after a kill."""
