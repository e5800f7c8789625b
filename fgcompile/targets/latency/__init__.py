"""How long models and their parts take in onnxruntime on this machine."""
