"""The recommendation wing: similar users, dominant sets of users, and the pull between user vectors."""
