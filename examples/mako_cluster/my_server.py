"""A node that renders templates, written like existing code for uWSGI.

In this directory:

    twistd -n uwsgi-node --listen tcp:3033:interface=127.0.0.1 --handler my_server

front.py gets pages from it. The renderer does the same without any code, and caches the compiled templates:

    twistd -n uwsgi-renderer --listen tcp:3033 --templates templates
"""

import os

import uwsgi
from mako.template import Template

TEMPLATES = os.path.join(os.path.dirname(os.path.abspath(__file__)), "templates")


def makogenerator(obj: tuple[str, dict[str, object]], id: int) -> object:  # noqa: A002 - uWSGI's own name for it
    name, vars = obj  # noqa: A001
    # basename, since a caller may send any name.
    return Template(filename=os.path.join(TEMPLATES, os.path.basename(name))).render(attributes=vars)


uwsgi.message_manager_marshal = makogenerator
