"""The report of an experiment: tables, figures and the documents that hold them."""
