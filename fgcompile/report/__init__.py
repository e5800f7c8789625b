"""What changed between two models, and its renderers."""
