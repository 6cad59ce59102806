"""The gRPC door of Roost: configuration, transport and the life of the process.

Imports handlers and store; neither imports it.
"""
