"""Rewrites of a program, one a file; the function is named as the file."""
