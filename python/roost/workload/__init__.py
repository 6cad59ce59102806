"""Real and generated work for a Roost server: recorded conversations, a trace, how they are played and verified."""
