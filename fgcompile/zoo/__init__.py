"""Small random models of every family, offline."""
