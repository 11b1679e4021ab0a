"""What the processes of one service share: caches, locks, a queue, metrics, signals, mules' messages."""
