"""HTTP in front, uwsgi behind: what the service ``uwsgi-router`` is made of."""
