"""One command each: ``HELP``, ``add_options(parser)``, and ``run(options)``, which returns an :class:`Answer`."""
