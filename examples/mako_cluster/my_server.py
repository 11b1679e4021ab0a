"""A node that renders templates, as code for uWSGI has always done it.

In this directory:

    twistd -n uwsgi-node --listen tcp:3033:interface=127.0.0.1 --handler my_server

front.py asks it for pages. The renderer does the same without any code, and keeps the compiled templates:

    twistd -n uwsgi-renderer --listen tcp:3033 --templates templates
"""

import os

import uwsgi
from mako.template import Template

TEMPLATES = os.path.join(os.path.dirname(os.path.abspath(__file__)), "templates")


def makogenerator(obj: tuple[str, dict[str, object]], id: int) -> object:  # noqa: A002 - uWSGI's own name for it
    name, vars = obj  # noqa: A001
    # basename, because whoever may connect may send any name.
    return Template(filename=os.path.join(TEMPLATES, os.path.basename(name))).render(attributes=vars)


uwsgi.message_manager_marshal = makogenerator
