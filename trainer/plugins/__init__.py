"""Policies that are not built in: found by name or import path, and with a state of their own."""
