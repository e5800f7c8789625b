"""Published methods, on top of groups and gates."""
