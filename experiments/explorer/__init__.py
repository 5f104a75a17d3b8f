"""A page in the browser on which a model is steered by hand."""
