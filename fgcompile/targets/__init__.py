"""What a lowered program can be written as."""
