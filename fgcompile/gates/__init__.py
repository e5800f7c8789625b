"""Trainable switches, their penalty and their budget."""
