"""What runs in a worker process. It imports no Twisted; of all this the front imports only :mod:`.spec`."""
