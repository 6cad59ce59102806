"""Dumps of ended sessions: `target` is where they lie, `writer` writes and verifies them, `reader` reads them again.

A dump is some parts and a manifest that is written last: without its manifest it does not exist.
"""
