"""The front's side of what the processes of a service share."""
