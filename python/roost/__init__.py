"""Roost keeps the life of LLM-agent sessions: turns, slots, residency, history, the end."""
