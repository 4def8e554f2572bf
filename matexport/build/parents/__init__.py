"""Kinds of parents, one module each. Each gives the pipeline a plan made from configuration files alone, and then the
loaded parent: a torch module, its inputs, and the files that the runtime needs."""
