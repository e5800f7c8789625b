"""The papers' claims, asked of a network that learns digits in seconds."""
