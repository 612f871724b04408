"""Scripts that run in the environments of the peers, where nothing of ours is installed; all share ``peer_job``."""
