"""Machinery that a reader of the method may skip; nothing here imports anything above it."""
