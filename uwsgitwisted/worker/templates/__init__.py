"""Templates: finds, compiles and renders them, with Mako, Jinja2 or another engine. It imports no Twisted."""
