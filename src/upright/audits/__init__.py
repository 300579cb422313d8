"""Audits of what somebody already has: their files, their evidence, their folder; until each is a task."""
