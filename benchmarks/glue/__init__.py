"""The papers' methods on GLUE with MiniLM: one record a run, a table from them."""
