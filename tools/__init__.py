"""Tools for working on this repository; nothing in the library or the pipelines imports them."""
