"""Which nodes a cluster has: addresses, files of addresses, and names in the DNS. It opens no socket."""
