"""What a server does, round by round: one workflow in each file."""
