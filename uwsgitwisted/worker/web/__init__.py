"""Web requests in a worker process: from the variables of a packet to the bytes of an HTTP answer."""
