"""Effects of the engine and the cold RPCs, transport-neutral: bytes in, bytes or a refusal out.

Imports the store, never the server.
"""
