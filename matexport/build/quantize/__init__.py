"""One precision of the traced graph: which weights there are, what flows into them, and how they are stored.

Each precision is one module with one function that rewrites a copy of the traced graph in place. It is applied before
anything is cut, so that all profiles of a precision share one weights file.
"""
