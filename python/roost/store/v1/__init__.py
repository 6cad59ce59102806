"""The messages that store columns hold, generated from proto/roost/store/v1."""
