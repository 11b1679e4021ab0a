"""A front node: answers a query string with the page that front.py makes from it.

Start a renderer as my_server.py says, then, in this directory:

    RENDERERS=127.0.0.1:3033 twistd -n --pidfile= uwsgi-node --listen tcp:3040 --handler front_node
    python -c 'from uwsgitwisted import blocking; print(blocking.send_message("127.0.0.1:3040", 33, 0, "n=12"))'
"""

import uwsgi
from front import page


def answer(query: str, modifier2: int) -> object:
    return page(query)


uwsgi.message_manager_marshal = answer
