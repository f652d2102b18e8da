"""What detection entries do at test time, each a step of its own and off unless asked for."""
