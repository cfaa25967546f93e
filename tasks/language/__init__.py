"""Language: a text is an episode, the next token the action."""
