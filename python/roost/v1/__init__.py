"""The messages and services of package roost.v1, generated from proto/roost/v1."""
