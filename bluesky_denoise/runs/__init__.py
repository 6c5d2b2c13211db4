"""From the documents of a raw run to those of the derived one, step by step."""
