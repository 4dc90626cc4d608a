"""The pages, and parts of pages, that are written from the code: ``python -m docs.generator`` (``make docs``).

Owns: what is taken from the code and how it reads. Does not own the other pages, nor how Markdown becomes a site.
"""
