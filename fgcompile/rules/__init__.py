"""What an op does to dims, one small file per op family."""
